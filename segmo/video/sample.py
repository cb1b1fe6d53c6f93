"""The frame that is shown at every multiple of ``1 / fps`` seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from segmo.errors import OptionError
from segmo.video.clip import ROUNDING
from segmo.video.index import Index


def sampling_rate(index: Index, fps: float, max_frames: int | None) -> float:
    """Frames per second to sample: ``fps``, or less where the file has fewer or would give too many.

    Raises:
        OptionError: ``fps`` is not a positive number, or ``max_frames`` is less than 1.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise OptionError(f"a video is sampled at more than 0 frames per second, got {fps}")
    rate = min(fps, index.dense)
    if max_frames is None:
        return rate
    if max_frames < 1:
        raise OptionError(f"at least one frame of a video is sampled, got {max_frames} at most")
    return min(rate, max_frames / index.duration)


def count_samples(index: Index, fps: float) -> int:
    """How many frames a whole file gives at ``fps``; at least one."""
    return max(1, math.ceil((index.duration - ROUNDING) * fps))


class Sampler:
    """Picks frames as they come. A frame that is shown for long is picked again at every multiple.

    Args:
        fps: picks per second.
        start: the first pick is at the first multiple of ``1 / fps`` from here on, in seconds.
        limit: picks with a number from here on are left out.
    """

    def __init__(self, fps: float, start: float = 0.0, limit: int | None = None) -> None:
        self._fps, self._limit = fps, math.inf if limit is None else limit
        self._next = max(0, math.ceil((start - ROUNDING) * fps))
        self._shown: Any = None

    def add(self, time: float, frame: Any) -> Iterator[tuple[int, Any]]:
        """Takes the next frame; gives (number of the pick, frame) for picks at which the one before was shown."""
        if self._shown is not None:
            yield from self.end(time)
        self._shown = frame

    def end(self, time: float) -> Iterator[tuple[int, Any]]:
        """Picks before ``time``, at which the last frame ends."""
        while self._next < self._limit and self._next / self._fps < time - ROUNDING:
            yield self._next, self._shown
            self._next += 1
