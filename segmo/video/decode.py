"""Frames in the order of time, from a point in the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av

from segmo.video.clip import ROUNDING
from segmo.video.index import Index
from segmo.video.source import open_source


@dataclass(frozen=True)
class Span:
    """A stretch of a file in seconds from its first frame: frames with ``start <= time < end``."""

    start: float = 0.0
    end: float = math.inf


@dataclass
class Damage:
    """What could not be decoded.

    Attributes:
        packets: packets that the decoder refused.
        broken_off: the file ended in the middle.
    """

    packets: int = 0
    broken_off: bool = field(default=False)

    def notes(self) -> tuple[str, ...]:
        """The same in words."""
        found = []
        if self.packets:
            found.append(f"{self.packets} damaged packet{'s' if self.packets > 1 else ''} could not be decoded")
        if self.broken_off:
            found.append("the file breaks off before its end")
        return tuple(found)


def decode(
    path: Path, index: Index, span: Span = Span(), damage: Damage | None = None, threads: int = 1
) -> Iterator[tuple[float, Any]]:
    """Decoded frames of a stretch with the times at which they are shown.

    Seeks to the last keyframe before the stretch. One frame is held at a time. What cannot be decoded is left out and
    noted; times that run backwards, as they do in damaged files, are put one frame after the frame before.

    Args:
        path: the file.
        index: of this file.
        span: which frames.
        damage: takes what could not be decoded.
        threads: of the decoder; 0 leaves it to FFmpeg.

    Yields:
        (seconds from the file's first frame, ``av.VideoFrame``), times strictly ascending.

    Raises:
        VideoError: it is not a video.
    """
    damage = Damage() if damage is None else damage
    last = -math.inf
    with open_source(path, threads) as (container, stream):
        if span.start > 0 and index.timed:
            _seek(container, stream, index, span.start)
        for number, frame in enumerate(_frames(container, stream, damage)):
            stamp = frame.pts if index.timed else None
            time = number / index.rate if stamp is None else float(stamp * frame.time_base) - index.origin
            time = time if time > last else last + 1 / index.rate
            last = time
            if time >= span.end - ROUNDING:
                return
            if time >= span.start - ROUNDING:
                yield time, frame


def _seek(container: Any, stream: Any, index: Index, seconds: float) -> None:
    before = index.keyframes[index.keyframes <= seconds + ROUNDING]
    start = float(before[-1]) if len(before) else 0.0
    # Rounded up, so that a keyframe at this very time is not missed by a tick.
    container.seek(math.ceil((start + index.origin) / float(stream.time_base) - 1e-6), stream=stream)


def _frames(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            damage.broken_off = True
            return
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            damage.packets += 1
            continue
        yield from decoded
