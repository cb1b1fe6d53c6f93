"""Where scenes start in a video that is still going on: what has come decides, never what will come.

:mod:`segmo.runtime.scenes` looks at frames on both sides of a cut and at the sharpest cut of the whole video. Here a
frame is judged by those before it, so that the same frames give the same scenes however they are handed in. The
thresholds are the same ones.

Legend: F frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from segmo.runtime.scenes import ALIKE, FAINT, MIN_DISTANCE, RATIO, WINDOW

# What the sharpest cut is taken for before there was one, so that noise in the first frames does not cut.
SHARPEST = 0.1


@dataclass
class SceneDetector:
    """Told the distance of each frame to the one before, in order; says which frames start a scene.

    Attributes:
        longest: a scene of so many frames ends there, whatever comes next; None for no limit.
        recent: distances of the last frames.
        sharpest: distance of the sharpest cut so far.
        length: frames of the scene that is going on.
        frames: that came so far.
    """

    longest: int | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=2 * WINDOW))
    sharpest: float = SHARPEST
    length: int = 0
    frames: int = 0

    def starts(self, distances: Iterable[float]) -> list[int]:
        """Which of the next frames, counted through the whole video, start a scene."""
        return [self.frames - 1 for distance in distances if self._starts(distance)]

    def _starts(self, distance: float) -> bool:
        first = self.frames == 0
        self.frames += 1
        local = sum(self.recent) / len(self.recent) if self.recent else 0.0
        out = distance >= max(RATIO * local, MIN_DISTANCE, FAINT * self.sharpest) and bool(self.recent)
        cut = not first and (out or distance >= ALIKE * self.sharpest)
        if not first:
            self.recent.append(distance)
        if cut:
            self.sharpest = max(self.sharpest, distance)
        start = first or cut or self.length == self.longest
        self.length = 1 if start else self.length + 1
        return start
