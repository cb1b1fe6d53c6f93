"""What is read from a video file.

Legend: F sampled frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmo.video.index import Index

ROUNDING = 5e-4  # seconds; timestamps are whole multiples of the stream's time base


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video file, and the scenes of the whole of it.

    Attributes:
        path: the file.
        frames: (F, height, width, 3) uint8 RGB, upright.
        seconds: (F,) float64, the times whose picture each frame is, from the first frame of the file.
        fps: sampled frames per second; what was asked for, or less if the file has fewer or a limit was met.
        duration: seconds from the first frame to the end of the last one.
        cuts: seconds at which a scene after the first starts, ascending.
        cut_frames: the same as numbers of frames of the file, counted from 0.
        notes: what was wrong with the file and could be left out; empty for a sound file.
        index: the time line of the file, with which :func:`segmo.video.fetch` need not read it again.
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

    def only(self, index: Sequence[int] | NDArray[np.int64]) -> Clip:
        """The clip with these of its frames alone, ascending; scenes and fps stay those of the file."""
        chosen = np.asarray(index, dtype=np.int64)
        return replace(self, frames=self.frames[chosen], seconds=self.seconds[chosen])
