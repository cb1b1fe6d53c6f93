"""The frame that is shown at every multiple of ``1 / fps`` seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from segmo.checked import is_number, is_whole
from segmo.errors import OptionError
from segmo.video.times import Index


@dataclass(frozen=True)
class Samples:
    """What to pick: frames at ``number / rate`` seconds, from one number on, so many.

    Attributes:
        rate: frames per second.
        first: the lowest number.
        count: how many, at least one.
    """

    rate: float
    first: int
    count: int


def check_rate(fps: float) -> None:
    """Whether a video can be sampled so.

    Raises:
        OptionError: it is not a positive number.
    """
    if not is_number(fps) or fps <= 0:
        raise OptionError(f"a video is sampled at more than 0 frames per second, got {fps!r}")


def check_part(start: float | None, end: float | None, max_frames: int | None) -> None:
    """Whether a part of a video can be sampled so.

    Raises:
        OptionError: a time is no number of seconds, or ``max_frames`` no number of frames.
    """
    for name, seconds in (("start", start), ("end", end)):
        if seconds is not None and not is_number(seconds):
            raise OptionError(f"{name} is {seconds!r}; it must be a number of seconds, or None")
    if max_frames is not None and not (is_whole(max_frames) and max_frames >= 1):
        raise OptionError(f"at least one frame of a video is sampled, got max_frames={max_frames!r}")


def plan_samples(
    index: Index, fps: float, max_frames: int | None, start: float | None = None, end: float | None = None
) -> Samples:
    """What to sample: at ``fps``, or less where the file has fewer frames or would give too many.

    Args:
        index: of the video.
        fps: frames per second.
        max_frames: at most so many.
        start, end: seconds of the part to sample, both included; the whole when None.

    Raises:
        OptionError: see :func:`check_part`, or the part holds no multiple of ``1 / fps`` seconds.
    """
    check_part(start, end, max_frames)
    rate = min(fps, index.dense)
    begin = max(0.0, start or 0.0)
    last = index.duration if end is None else min(index.duration, end + 2 * index.slack)
    length = (index.duration if end is None else min(index.duration, end)) - begin
    if max_frames is not None and length > 0:
        rate = min(rate, max_frames / length)
    first = math.ceil((begin - index.slack) * rate)
    stop = math.ceil((last - index.slack) * rate)
    if start is None and end is None:
        return Samples(rate, 0, max(1, stop))
    if stop <= first:
        shown = f"{begin:g} and {'its end' if end is None else f'{end:g} seconds'}"
        raise OptionError(f"there is no frame between {shown}; the video is {index.duration:.1f} s long")
    return Samples(rate, first, min(stop - first, max_frames or stop))


class Sampler:
    """Picks frames as they come. A frame that is shown for long is picked again at every multiple.

    Args:
        samples: what to pick.
        start: the first pick is at the first multiple from here on, in seconds.
        slack: seconds by which times may be off.
    """

    def __init__(self, samples: Samples, start: float = 0.0, slack: float = 1e-6) -> None:
        self._rate, self._limit, self._slack = samples.rate, samples.first + samples.count, slack
        self._next = max(samples.first, math.ceil((start - slack) * samples.rate))
        self._shown: Any = None

    def add(self, time: float, frame: Any) -> Iterator[tuple[int, Any]]:
        """Takes the next frame; gives (number of the pick, frame) for picks at which the one before was shown."""
        if self._shown is not None:
            yield from self.end(time)
        self._shown = frame

    def end(self, time: float) -> Iterator[tuple[int, Any]]:
        """Picks before ``time``, at which the last frame ends."""
        while self._next < self._limit and self._next / self._rate < time - self._slack:
            yield self._next, self._shown
            self._next += 1
