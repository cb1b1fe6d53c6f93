"""When each frame of a file is shown and where decoding can start, from its packets alone: nothing is decoded."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from segmo.video.source import frame_rate, open_source, stage_error


@dataclass(frozen=True)
class Index:
    """The time line of a file's video.

    Attributes:
        origin: time of the first frame as the file counts, in seconds; all other times are from there.
        times: when each frame is shown, ascending, (frames,) float64.
        keyframes: times at which decoding can start, ascending, (keyframes,) float64; 0 alone where the file has no
            timestamps.
        rate: frames per second that the file gives.
        dense: frames per second that are enough to show every frame at a steady rate.
        timed: the packets have timestamps, so that seeking lands where it should.
    """

    origin: float
    times: NDArray[np.float64]
    keyframes: NDArray[np.float64]
    rate: float
    dense: float
    timed: bool

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.times[-1]) + 1 / self.rate


def build_index(path: Path) -> Index:
    """Reads all packets of a file.

    Raises:
        VideoError: it is not a video, or has no packets of video.
    """
    with open_source(path) as (container, stream):
        rate = frame_rate(stream)
        stamps, keys, untimed = _packets(container, stream)
        step = float(stream.time_base or 0)
        base = float(stream.base_rate or 0) or rate
    if not stamps and not untimed:
        raise stage_error(path, "has a video stream without a single frame")
    if untimed or step <= 0:
        times = np.arange(len(stamps) + untimed) / rate
        return Index(0.0, times, np.zeros(1), rate, rate, timed=False)
    times = np.sort(np.asarray(stamps, dtype=np.float64)) * step
    origin = float(times[0])
    starts = np.unique(np.asarray(keys, dtype=np.float64) * step - origin)
    return Index(origin, times - origin, starts[starts >= 0], rate, max(rate, base), timed=True)


def _packets(container: Any, stream: Any) -> tuple[array[int], array[int], int]:
    """Presentation stamps, those of keyframes, and how many packets have none. A file that breaks off ends there."""
    stamps, keys = array("q"), array("q")
    untimed = 0
    try:
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                untimed += 1
                continue
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except av.error.FFmpegError:
        pass  # decoding meets the same place and notes it
    return stamps, keys, untimed
