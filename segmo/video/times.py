"""The time line of a video: when each frame is shown, and where decoding can start."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROUNDING = 5e-4  # seconds; time stamps are whole multiples of a time base, of a millisecond in Matroska
SLACK = 1e-6  # seconds; of computing with them


@dataclass(frozen=True)
class Index:
    """The time line of a video.

    Attributes:
        origin: time of the first frame as the file counts, in seconds; all other times are from there.
        times: when each frame is shown, ascending, (frames,) float64.
        keyframes: times at which decoding can start, ascending, (keyframes,) float64; 0 alone where it cannot.
        rate: frames per second that the file gives.
        dense: frames per second that are enough to show every frame at a steady rate.
        end: seconds at which the last frame ends.
        size: (width, height) of a frame as a player shows it: upright, its pixels square.
        stored: the same as the first frame is stored.
        transfer: how the file's signal becomes light, by the numbers of ITU-T H.273.
        slack: seconds by which a time may be off, because stamps are rounded.
        seeks: decoding can start at a keyframe. Otherwise the file is decoded from its start.
        counted: a frame's time is that of its number in ``times``, and not by its stamp.
        stream: number of the video stream in the file.
        notes: what a reader of the file should know.
    """

    origin: float
    times: NDArray[np.float64]
    keyframes: NDArray[np.float64]
    rate: float
    dense: float
    end: float
    size: tuple[int, int]
    stored: tuple[int, int]
    transfer: int = 2  # not said
    slack: float = SLACK
    seeks: bool = True
    counted: bool = False
    stream: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.end


def dense_rate(times: NDArray[np.float64], rate: float) -> float:
    """Frames per second that show every frame: the file's own, or those of its shortest step if that is much less."""
    if len(times) < 2:
        return rate
    fastest = 1 / max(float(np.diff(times).min()), 2 * ROUNDING)
    return fastest if fastest > 1.1 * rate else rate
