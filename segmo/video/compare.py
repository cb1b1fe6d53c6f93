"""Compares each frame of a stretch with the one before, as PySceneDetect does, where that can decide anything.

A cut needs a change of at least ``min_content_val``, and is judged by the frames next to it. Frames that a quick look
finds to change less than half of that are no cut, and no neighbours of one: they are not compared in full.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.video.glance import Glance
from segmo.video.scenes import SceneOptions, Small, change

# Of the least change of a cut, what a quick look must find for a full comparison. On real films the quick look gives
# between 0.8 and 1.3 of the full one (tests/test_video_compare.py).
ENOUGH = 0.5


@dataclass
class Changes:
    """What was found in a stretch.

    Attributes:
        values: how much each frame differs from the one before, 0 for the first; of a quick look, and less than half of
            what a cut needs, where that frame and its neighbours are no cut.
        first, last: its first and last frame, small, for the comparison across a border; None without frames.
    """

    values: array[float] = field(default_factory=lambda: array("d"))
    first: NDArray[np.uint8] | None = None
    last: NDArray[np.uint8] | None = None


@dataclass
class _Held:
    """A frame that may still be compared in full."""

    frame: Any
    small: NDArray[np.uint8] | None = None
    compared: bool = False


class Comparer:
    """Takes the frames of a stretch as they come from the decoder.

    In the decoder's own thread: handing a frame to another one costs as much as comparing it.

    Args:
        options: of the detector.
        size: (width, height) of the frames' first, for :class:`segmo.video.scenes.Small`.
    """

    def __init__(self, options: SceneOptions, size: tuple[int, int] | None = None) -> None:
        self.changes = Changes()
        self.busy = 0.0  # seconds
        self._window = options.window_width
        self._enough = ENOUGH * options.min_content_val
        self._small, self._glance = Small(size), Glance()
        self._before: NDArray[np.uint8] | None = None
        self._held: deque[_Held] = deque(maxlen=self._window + 2)  # the last frame, its neighbours and theirs
        self._until = self._window  # frames up to this one are compared in full: what stands before is not known

    def add(self, frame: Any) -> None:
        """Takes the next frame."""
        start, number = time.perf_counter(), len(self.changes.values)
        self._held.append(_Held(frame))
        quick = self._look(frame)
        self.changes.values.append(quick)
        if quick >= self._enough:
            self._until = max(self._until, number + self._window)
            self._compare_last(self._window + 1)
        elif number <= self._until:
            self._compare_last(1)
        self.busy += time.perf_counter() - start

    def end(self) -> None:
        """Compares the last frames in full: what comes behind the stretch is not known."""
        if self._held:
            start = time.perf_counter()
            self._compare_last(self._window)
            self.changes.last = self._shrunk(self._held[-1])
            self.busy += time.perf_counter() - start

    def _look(self, frame: Any) -> float:
        """The change that a quick look finds; infinite where none is possible."""
        before, self._before = self._before, self._glance(frame) if self._enough > 0 else None
        return math.inf if before is None or self._before is None else change(before, self._before)

    def _compare_last(self, count: int) -> None:
        values, held = self.changes.values, self._held
        for place in range(max(0, len(held) - count), len(held)):
            if held[place].compared:
                continue
            small, number = self._shrunk(held[place]), len(values) - len(held) + place
            if number == 0:
                self.changes.first = small
            values[number] = change(self._shrunk(held[place - 1]), small) if number else 0.0
            held[place].compared = True

    def _shrunk(self, held: _Held) -> NDArray[np.uint8]:
        if held.small is None:
            held.small = self._small(held.frame)
        return held.small
