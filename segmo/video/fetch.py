"""Single frames by seeking: what lies between them is not decoded, but for the way from the last keyframe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmo.video.clip import ROUNDING
from segmo.video.decode import Span, decode
from segmo.video.index import Index, build_index
from segmo.video.pixels import Picture
from segmo.video.source import stage_error


def fetch(
    path: Path | str,
    seconds: Sequence[float],
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int | None = None,
    index: Index | None = None,
) -> NDArray[np.uint8]:
    """The frames that are shown at the given times: what ``read`` gives for them, without decoding the rest.

    Args:
        path: any local file that FFmpeg can read.
        seconds: ascending, from the first frame of the file; ``Clip.seconds`` of the frames that are wanted.
        size, max_pixels: as for :func:`segmo.video.read`.
        index: of this file, if it is at hand.

    Returns:
        (F, height, width, 3) uint8 RGB, one for each time.

    Raises:
        VideoError: it is not a video, or a frame cannot be decoded.
    """
    path = Path(path)
    index = build_index(path) if index is None else index
    picture = Picture(size, max_pixels)
    frames: list[NDArray[np.uint8]] = []
    for start, end, wanted in _stretches(index, seconds):
        left, shown = list(wanted), None
        for time, frame in decode(path, index, Span(start, end)):
            while left and shown is not None and time > left[0] + ROUNDING:
                frames.append(picture(shown))
                left.pop(0)
            if not left:
                break
            shown = frame
        if left and shown is None:
            raise stage_error(path, f"has no frame at {left[0]:.2f} s that can be decoded")
        frames += [picture(shown)] * len(left)
    return np.stack(frames)


def _stretches(index: Index, seconds: Sequence[float]) -> list[tuple[float, float, list[float]]]:
    """Times that are decoded in one go, because no keyframe lies between them, with where to start and end."""
    groups: dict[int, list[float]] = {}
    for time in seconds:
        groups.setdefault(int(np.searchsorted(index.keyframes, time + ROUNDING, side="right")), []).append(time)
    last = float(index.times[-1])
    return [
        (float(index.keyframes[key - 1]) if key else 0.0, min(max(wanted) + 2 * ROUNDING, last + 1), wanted)
        for key, wanted in sorted(groups.items())
    ]
