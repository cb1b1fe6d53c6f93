"""What is known of the videos of the running call before the graph: their frames, and which cells have a token.

The graph holds features and positions. What says how many frames they are of stands in the call's other arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Known:
    """What is known of a batch's videos, in order of the prompt.

    Where rows in a row are copies of one prompt, as beams are, it is known of the first of them.

    Attributes:
        frames: frames of each video; None if that is not known.
        told: the call came through SegMo, which looked at its pictures; a function around a model is seen in its graphs
            alone.
        cell_V: the cell of its frame that each video token shows, (V,) int64, where a processor left cells out; None
            where every frame has all of its cells.
        copies: how many rows in a row are one prompt.
    """

    frames: tuple[int, ...] | None = None
    cell_V: Tensor | None = None
    told: bool = False
    copies: int = 1


NOTHING = Known()
_KNOWN: ContextVar[Known] = ContextVar("segmo_videos", default=NOTHING)


@contextmanager
def frames_known(frames: Sequence[int] | None, cell_V: Tensor | None = None, copies: int = 1) -> Iterator[None]:
    """Inside the block, this is known of the videos of the batch; see :class:`Known`."""
    token = _KNOWN.set(Known(None if frames is None else tuple(frames), cell_V, True, copies))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def current_videos() -> Known:
    """What is known of the videos of the running call."""
    return _KNOWN.get()
