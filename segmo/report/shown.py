"""What a user says of a prompt for the report: its frames, its question, its file. The graph holds none of them.

Legend: F frames that were handed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segmo.errors import OptionError
from segmo.scoped import Scoped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIDTH = 160  # pixels of a thumbnail, about


@dataclass(frozen=True)
class Shown:
    """What :func:`show_prompt` was given.

    Attributes:
        question: the question, empty if none was named.
        name: of the video, empty if none was named.
        frames: thumbnails, (F, height, width, 3) uint8 RGB; None without frames.
        size: (width, height) of the frames as they came, (0, 0) without.
    """

    question: str
    name: str
    frames: NDArray[np.uint8] | None
    size: tuple[int, int]


_SHOWN: Scoped[Shown] = Scoped("segmo_shown")


@contextmanager
def show_prompt(frames: Any = None, *, question: str = "", name: str = "") -> Iterator[None]:
    """What the report shows of the prompts that run inside the ``with`` block.

    Args:
        frames: the video as it went into the processor, (F, height, width, 3) uint8 RGB: an array, a tensor or a list
            of images. All frames of the prompt in order; of several videos, one after the other. Only thumbnails are
            kept.
        question: text of the question.
        name: name of the video, such as its file.

    Raises:
        OptionError: ``frames`` has another shape or dtype.
    """
    thumbnails, size = _thumbnails(frames)
    with _SHOWN.block(Shown(question, name, thumbnails, size)):
        yield


def current_shown() -> Shown | None:
    """What was said of the running prompt; None outside of :func:`show_prompt`, and where it is not known whose."""
    shown = _SHOWN.innermost()
    return shown[0] if len(shown) == 1 else None


def _thumbnails(frames: Any) -> tuple[NDArray[np.uint8] | None, tuple[int, int]]:
    """Every n-th pixel in both directions: cheap, and good enough for a picture of this size."""
    import numpy as np

    if frames is None:
        return None, (0, 0)
    try:
        listed = isinstance(frames, (list, tuple)) and len(frames) > 0
        array = np.stack([np.asarray(frame) for frame in frames]) if listed else np.asarray(frames)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"frames of a prompt are (frames, height, width, 3) uint8 RGB, of one size, on the CPU ({error})"
        ) from error
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise OptionError(
            f"frames of a prompt are (frames, height, width, 3) uint8 RGB, got {array.dtype} of shape {array.shape}"
        )
    step = max(1, array.shape[2] // WIDTH)
    return array[:, ::step, ::step].copy(), (array.shape[2], array.shape[1])
