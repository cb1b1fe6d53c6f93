"""Single frames by seeking: what lies between them is not decoded, but for the way from the last keyframe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segmo.video.decode import Span, decode
from segmo.video.given import Given, as_source
from segmo.video.index import build_index
from segmo.video.pixels import Picture, fitted
from segmo.video.source import stage_error
from segmo.video.times import Index


def fetch(
    source: Given,
    seconds: Sequence[float],
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int | None = None,
    index: Index | None = None,
) -> NDArray[np.uint8]:
    """The frames that are shown at the given times: what ``read`` gives for them, without decoding the rest.

    Args:
        source: as for :func:`segmo.video.read`.
        seconds: ascending, from the first frame of the video; ``Clip.seconds`` of the frames that are wanted.
        size, max_pixels: as for :func:`segmo.video.read`.
        index: of this video, if it is at hand.

    Returns:
        (F, height, width, 3) uint8 RGB, one for each time.

    Raises:
        VideoError: it is not a video, or a frame cannot be decoded.
    """
    source = as_source(source)
    index = build_index(source) if index is None else index
    picture = Picture(size or fitted(*index.size, max_pixels), index.stored, index.transfer)
    frames: list[NDArray[np.uint8]] = []
    for start, wanted in _stretches(index, seconds):
        found = _shown_at(source, index, start, wanted, picture)
        if found is None:  # what seems a keyframe is none
            found = _shown_at(source, replace(index, seeks=False), 0.0, wanted, picture)
        if found is None:
            raise stage_error(source, f"has no frame at {wanted[0]:.2f} s that can be decoded")
        frames += found
    return np.stack(frames)


def _shown_at(
    source: Given, index: Index, start: float, wanted: list[float], picture: Picture
) -> list[NDArray[np.uint8]] | None:
    """The frames at some times, decoding from ``start``; None if the first of them cannot be had from there."""
    found: list[NDArray[np.uint8]] = []
    left, shown = list(wanted), None
    for time, frame in decode(source, index, Span(start)):
        if shown is None and time > left[0] + index.slack:
            return None
        while left and time > left[0] + index.slack:
            found.append(picture(shown))
            left.pop(0)
        if not left:
            return found
        shown = frame
    return None if shown is None else found + [picture(shown)] * len(left)


def _stretches(index: Index, seconds: Sequence[float]) -> list[tuple[float, list[float]]]:
    """Times that are decoded in one go, because no keyframe lies between them, with where to start."""
    groups: dict[int, list[float]] = {}
    for time in seconds:
        groups.setdefault(int(np.searchsorted(index.keyframes, time + index.slack, side="right")), []).append(time)
    return [(float(index.keyframes[key - 1]) if key else 0.0, wanted) for key, wanted in sorted(groups.items())]
