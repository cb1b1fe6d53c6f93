"""Frames in the order of time, from a point in a video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from segmo.video.given import Given, as_source
from segmo.video.packets import Damage, decoded_frames
from segmo.video.source import File, open_source, video_streams
from segmo.video.times import Index


@dataclass(frozen=True)
class Span:
    """A stretch of a video in seconds from its first frame: frames with ``start <= time < end``."""

    start: float = 0.0
    end: float = math.inf


def decode(
    source: Given, index: Index, span: Span = Span(), damage: Damage | None = None, threads: int = 1
) -> Iterator[tuple[float, Any]]:
    """Decoded frames of a stretch with the times at which they are shown.

    Seeks to the last keyframe before the stretch. One frame is held at a time. What cannot be decoded is left out and
    noted; times that run backwards, as they do in damaged files, are put one frame after the frame before.

    Args:
        source: what :func:`segmo.video.read` takes.
        index: of the same.
        span: which frames.
        damage: takes what could not be decoded.
        threads: of the decoder; 0 leaves it to FFmpeg.

    Yields:
        (seconds from the first frame, ``av.VideoFrame``), times strictly ascending.

    Raises:
        VideoError: it is not a video.
    """
    source = as_source(source)
    if isinstance(source, File):
        frames = _from_file(source, index, span, Damage() if damage is None else damage, threads)
    else:
        frames = source.frames(index, span.start)
    for time, frame in frames:
        if time >= span.end - index.slack:
            return
        if time >= span.start - index.slack:
            yield time, frame


def _from_file(source: File, index: Index, span: Span, damage: Damage, threads: int) -> Iterator[tuple[float, Any]]:
    last = -math.inf
    with open_source(source) as container:
        stream = video_streams(container, source, index.stream, threads)[0]
        if span.start > 0 and index.seeks:
            _seek(container, stream, index, span.start)
        for number, frame in enumerate(decoded_frames(container, stream, damage)):
            time = _time(frame, number, index)
            last = time if time is not None and time > last else max(0.0, last + 1 / index.rate)
            yield last, frame


def _time(frame: Any, number: int, index: Index) -> float | None:
    if index.counted:
        return float(index.times[number]) if number < len(index.times) else None
    return None if frame.pts is None else float(frame.pts * frame.time_base) - index.origin


def _seek(container: Any, stream: Any, index: Index, seconds: float) -> None:
    before = index.keyframes[index.keyframes <= seconds + index.slack]
    start = float(before[-1]) if len(before) else 0.0
    # Rounded up, so that a keyframe at this very time is not missed by a tick.
    container.seek(math.ceil((start + index.origin) / float(stream.time_base) - 1e-6), stream=stream)
