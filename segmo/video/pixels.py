"""A decoded frame as an array: scaled, upright, RGB."""

from __future__ import annotations

import math
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

# More threads only wait for each other on small pictures. The PyAV that lmms-eval asks for, 15, has no such argument.
THREADS = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}


class Picture:
    """Turns decoded frames into arrays of one size.

    A converter of FFmpeg's is set up once for all frames of a size, which is most of the work for small ones.

    Args:
        size: (width, height) of the upright picture; the file's own when None.
        max_pixels: pictures with more pixels are scaled down to at most so many, in their aspect ratio; only without
            ``size``.
    """

    def __init__(self, size: tuple[int, int] | None = None, max_pixels: int | None = None) -> None:
        self._size, self._max_pixels = size, max_pixels
        self._convert: Any = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB."""
        turns = round(frame.rotation / 90) % 4
        wide, high = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        if self._size is None:
            self._size = fitted(wide, high, self._max_pixels)  # the first frame's, also where later ones differ
        width, height = self._size
        if turns % 2:
            width, height = height, width
        scaled = self._convert.reformat(frame, width, height, "rgb24", **THREADS)
        pixels = np.rot90(scaled.to_ndarray(), turns)
        return np.ascontiguousarray(pixels).astype(np.uint8, copy=False)


def fitted(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """A size of the same aspect ratio with at most ``max_pixels`` pixels; itself if that holds already."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
