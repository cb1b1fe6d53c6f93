"""What is read from a video file.

Legend: F sampled frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.video.given import Source
from segmo.video.times import ROUNDING, Index


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video, and its scenes.

    Attributes:
        path: the file, or what stands for it in messages.
        frames: (F, height, width, 3) uint8 RGB, as a player shows them: upright, pixels square, in standard range.
        seconds: (F,) float64, the times whose picture each frame is, from the first frame of the file.
        fps: sampled frames per second; what was asked for, or less if the file has fewer or a limit was met.
        duration: seconds from the first frame to the end of the last one.
        cuts: seconds at which a scene after the first starts, ascending.
        cut_frames: the same as numbers of frames of the file, counted from 0.
        notes: what a reader should know: what was mended, left out or brought to another form.
        index: the time line of the file, with which :func:`segmo.video.fetch` need not read it again.
        damaged: something could not be decoded.
        source: what was read.
    """

    path: Path
    frames: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    fps: float
    duration: float
    cuts: tuple[float, ...] = ()
    cut_frames: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    index: Index | None = None
    damaged: bool = False
    source: Source | None = None

    @property
    def scene_F(self) -> NDArray[np.int64]:
        """Scene of each sampled frame, (F,), counted from 0. A scene between two samples has no frame."""
        return np.searchsorted(np.asarray(self.cuts), self.seconds + ROUNDING, side="right").astype(np.int64)

    @property
    def scenes(self) -> list[tuple[float, float]]:
        """Start and end of each scene in seconds; they cover the file."""
        starts = [0.0, *self.cuts]
        return list(zip(starts, [*starts[1:], self.duration], strict=True))

    def index_at(self, seconds: float) -> int:
        """Number of the first sampled frame at or after ``seconds``; F if there is none."""
        return int(np.searchsorted(self.seconds, seconds - ROUNDING))

    @property
    def places(self) -> list[int]:
        """Numbers of the frames among those that the whole film gives at ``fps``."""
        found: list[int] = np.rint(self.seconds * self.fps).astype(int).tolist()
        return found

    def metadata(self) -> dict[str, Any]:
        """What a transformers processor asks about frames that are not sampled again: their times in the whole film."""
        places = self.places
        return {"total_num_frames": places[-1] + 1, "fps": self.fps, "frames_indices": places}

    def grid_seconds(self, pictures: int) -> float:
        """Seconds from one frame of the language model to the next, on average (Qwen's ``second_per_grid_ts``).

        Args:
            pictures: that make one of its frames.
        """
        starts = self.places[::pictures]
        # In whole numbers as long as possible: a model cuts off the fractions of its positions.
        steps = (starts[-1] - starts[0]) / (len(starts) - 1) if len(starts) > 1 else pictures
        return steps / self.fps

    def padded(self, pictures: int) -> Clip:
        """The clip with its last frame repeated, at the same time, up to a multiple of ``pictures`` frames.

        Models that join so many pictures into one frame do so by themselves, but not with fewer than that in all.
        """
        count = len(self.frames)
        return self.only([*range(count), *[count - 1] * (-count % pictures)]) if count % pictures else self

    def only(self, index: Sequence[int] | NDArray[np.int64]) -> Clip:
        """The clip with these of its frames alone, ascending; scenes and fps stay those of the file."""
        chosen = np.asarray(index, dtype=np.int64)
        return replace(self, frames=self.frames[chosen], seconds=self.seconds[chosen])

    def noted(self, note: str) -> Clip:
        """The clip with one note more, if there is anything to note."""
        return replace(self, notes=(*self.notes, note)) if note else self
