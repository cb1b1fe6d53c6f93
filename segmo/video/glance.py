"""A quick look at a decoded frame: the colours of a coarse grid of its pixels.

Bringing a whole frame to RGB and to a small size costs about as much as decoding it. Most frames are like the one
before, and a few thousand pixels are enough to see that. They are taken out of the planes that the decoder wrote, and
then go the same way as all others: YUV, RGB, HSV.
"""

from __future__ import annotations

from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from segmo.video.pixels import THREADS

# What decoders give for nearly all files: a site of the two colour planes stands for 2 x 2 pixels of the first plane.
FORMATS = frozenset({"yuv420p", "yuvj420p"})
SIDE = 32  # sites of the grid's longer side, about


class Glance:
    """Takes the grid out of frames of one size and format."""

    def __init__(self) -> None:
        self._kind: tuple[str, int, int] | None = None
        self._step = 1
        self._grid: Any = None
        self._luma: NDArray[np.uint16] = np.empty((0, 0), np.uint16)
        self._colours: list[NDArray[np.uint8]] = []
        self._convert: Any = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: Any) -> NDArray[np.uint8] | None:
        """Hue, saturation and brightness of the grid, (rows, columns, 3) uint8.

        None for a frame of another kind than the first, and for what is not looked at: other formats, a single row.
        """
        kind = (frame.format.name, frame.width, frame.height)
        if kind[0] not in FORMATS or min(kind[1:]) < 2 or (self._kind or kind) != kind:
            return None
        if self._kind is None:
            self._kind = kind
            self._lay_out(frame)
        self._fill(frame)
        pixels = self._convert.reformat(self._grid, format="bgr24", **THREADS).to_ndarray()
        looked: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
        return looked

    def _lay_out(self, frame: Any) -> None:
        """The grid, as a small frame that is filled again for each frame."""
        sites = np.array([frame.height // 2, frame.width // 2])
        self._step = max(1, int(sites.max()) // SIDE)
        rows, columns = (-(-sites // self._step)).tolist()
        self._grid = av.VideoFrame(2 * columns, 2 * rows, frame.format.name)
        self._grid.color_range, self._grid.colorspace = frame.color_range, frame.colorspace
        luma, *colours = self._grid.planes
        self._luma = _rows(luma, np.uint16)[: 2 * rows, :columns]
        self._colours = [_rows(plane, np.uint8)[:rows, :columns] for plane in colours]

    def _fill(self, frame: Any) -> None:
        """Every so many sites, with the four pixels of each; two pixels side by side are copied as one number."""
        step, high, wide = self._step, frame.height // 2, frame.width // 2
        luma, *colours = frame.planes
        pairs = _rows(luma, np.uint16)
        self._luma[0::2] = pairs[0 : 2 * high : 2 * step, :wide:step]
        self._luma[1::2] = pairs[1 : 2 * high : 2 * step, :wide:step]
        for plane, grid in zip(colours, self._colours, strict=True):
            grid[:] = _rows(plane, np.uint8)[:high:step, :wide:step]


def _rows(plane: Any, kind: Any) -> NDArray[Any]:
    """A plane's memory, one row of the picture after the other."""
    return np.frombuffer(plane, kind).reshape(plane.height, -1)
