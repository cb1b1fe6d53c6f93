"""A video as users hand it in, made into parts: frames, files, and a processor's outputs.

Legend: T frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmo.errors import OptionError, PromptError
from segmo.families import Family
from segmo.memory.known import text_inside, video_token
from segmo.memory.prompt import Part, Script, from_outputs
from segmo.memory.watcher import Watcher

Video = str | Path | NDArray[np.uint8] | Tensor | Mapping[str, Any]


@dataclass(frozen=True)
class Intake:
    """Makes parts of one video of what is handed in.

    Attributes:
        model, family: that watch.
        script: what its processor makes of frames; None without one.
        fps: sampled frames per second of what is no file.
    """

    model: Any
    family: Family
    script: Script | None
    fps: float

    def part(self, video: Video, skipped: int, watcher: Watcher | None) -> Part:
        """The next part, behind what has been watched; ``skipped`` frames came in between.

        Raises:
            OptionError: ``skipped`` is no count.
            PromptError: it is no video, or not one that goes on from what was watched.
        """
        _check_skipped(skipped)
        if isinstance(video, Mapping):
            return self._outputs(video, skipped, watcher)
        if self.script is None:
            raise PromptError("frames need a processor; without one, hand in a processor's outputs")
        frames = self._frames(video, going_on=watcher is not None)
        self.script.sampled += skipped
        return self.script.first(frames) if watcher is None else self.script.more(frames)

    def _outputs(self, outputs: Mapping[str, Any], skipped: int, watcher: Watcher | None) -> Part:
        part = from_outputs(outputs, video_token(self.model), self.fps)
        if watcher is not None and text_inside(self.family):
            raise PromptError(
                f"{self.family.model_type} writes text between frames, which a processor's outputs for a further "
                "part do not hold; extend with frames"
            )
        if watcher is None and self.script is not None:
            self.script.learn(part)
        start = 0.0 if watcher is None else watcher.seconds[-1] + watcher.each
        start += skipped / self.fps
        return replace(part, seconds=tuple(start + at for at in part.seconds))

    def _frames(self, video: Any, going_on: bool) -> NDArray[np.uint8]:
        if not isinstance(video, (str, Path)):
            return as_frames(video)
        from segmo.video import read

        assert self.script is not None
        rate = self.script.fps if going_on else self.fps
        clip = read(video, rate)
        if going_on and not math.isclose(clip.fps, rate, rel_tol=0.01):
            raise PromptError(
                f"{video} has {clip.fps:g} frames per second, and this memory was watched at {rate:g}: it would not be "
                f"known when its frames are shown. Watch both with fps={clip.fps:g}"
            )
        if not going_on:
            self.script.fps = clip.fps
        return clip.frames


def _check_skipped(skipped: object) -> None:
    if not isinstance(skipped, int) or isinstance(skipped, bool) or skipped < 0:
        raise OptionError(f"skipped is {skipped!r}; it must be a number of frames, a whole number >= 0")


def as_frames(video: Any) -> NDArray[np.uint8]:
    """Frames as an array (T, height, width, 3) uint8.

    Raises:
        PromptError: they are none.
    """
    try:
        frames: NDArray[np.uint8] = np.asarray(video.detach().cpu() if isinstance(video, Tensor) else video)
    except (ValueError, TypeError, RuntimeError) as error:
        raise PromptError(f"frames must be of one size, as uint8 (T, height, width, 3) ({error})") from error
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        what = f"a {type(video).__name__}" if frames.dtype == object else f"{frames.dtype} of shape {frames.shape}"
        raise PromptError(f"frames are {what}; they must be uint8 (T, height, width, 3), T >= 1")
    return frames


def check_fps(fps: Any) -> None:
    """Refuses what is no frame rate.

    Raises:
        OptionError: it is no number above 0.
    """
    if isinstance(fps, bool) or not isinstance(fps, (int, float, np.number)) or not 0 < fps < math.inf:
        raise OptionError(f"fps is {fps!r}; it must be a number of frames per second, above 0")


def are_several(question: Any) -> bool:
    """Whether these are questions, and not one as text or as ids."""
    return isinstance(question, (list, tuple)) and bool(question) and not isinstance(question[0], Number)


def as_ids(question: Any, model: Any) -> list[int]:
    """A question's ids.

    Raises:
        PromptError: they are none, or hold what stands for a video or an image.
    """
    try:
        found = torch.as_tensor(question)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(
            f"a question is a {type(question).__name__}; ask in words, or with ids of what stands behind the video"
        ) from error
    if not found.numel():
        raise PromptError("the question has no tokens")
    rows = model.get_input_embeddings().weight.shape[0]
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if not whole or found.dim() > 2 or (found.dim() == 2 and len(found) != 1) or found.dim() == 0:
        raise PromptError(
            f"a question's ids are {found.dtype} of shape {tuple(found.shape)}; they must be whole numbers (N,) or "
            "(1, N), and several questions a list of these"
        )
    ids: list[int] = found.reshape(-1).tolist()
    wrong = [each for each in ids if not 0 <= each < rows]
    if wrong:
        raise PromptError(f"a question holds the id {wrong[0]}; this model's ids are 0 to {rows - 1}")
    check_text(ids, model)
    return ids


def check_text(ids: list[int], model: Any) -> None:
    """Refuses ids behind a video that stand for a video or an image: nothing is put in their place.

    Raises:
        PromptError: one does.
    """
    for name, token in (("video", video_token(model)), ("image", getattr(model.config, "image_token_id", None))):
        if token in ids:
            raise PromptError(f"the question holds the model's {name} token (id {token}); ask with text alone")
