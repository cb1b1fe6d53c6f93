"""A decoded frame as an array: as a player shows it, upright, its pixels square, RGB in standard range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from segmo.video.tone import TRANSFERS, standard_range

# More threads only wait for each other on small pictures. The PyAV that lmms-eval asks for, 15, has no such argument.
THREADS = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}
_SQUARISH = 16  # pixels that are said to be longer than this are a damaged header
UNSAID = 2  # how a signal becomes light, in ITU-T H.273


@dataclass(frozen=True)
class Turn:
    """How a frame's rows and columns become those of the upright picture: first exchanged, then mirrored.

    Attributes:
        over: rows become columns.
        left, down: the picture is mirrored from left to right, or upside down.
    """

    over: bool = False
    left: bool = False
    down: bool = False

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(height, width, 3) upright."""
        pixels = pixels.transpose(1, 0, 2) if self.over else pixels
        return pixels[:: -1 if self.down else 1, :: -1 if self.left else 1]

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the upright picture, or of the frame that it was made of."""
        return (height, width) if self.over else (width, height)


def turn_of(frame: Any) -> Turn:
    """What the frame's display matrix asks for, to the nearest quarter of a circle."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return Turn()
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(True, c < 0, b < 0)
    return Turn(False, a < 0, d < 0)


def shown_size(frame: Any, aspect: Any) -> tuple[int, int]:
    """(width, height) at which a player shows a frame. Pixels that are not square are drawn out, never shrunk.

    Args:
        frame: decoded.
        aspect: width of a pixel by its height, as the file says; None or 0 where it says nothing.
    """
    width, height = frame.width, frame.height
    if aspect and 1 / _SQUARISH <= aspect <= _SQUARISH:
        width, height = max(width, round(width * aspect)), max(height, round(height / aspect))
    return turn_of(frame).size(width, height)


def fitted(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """A size of the same aspect ratio with at most ``max_pixels`` pixels; itself if that holds already."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


class Picture:
    """Turns decoded frames into arrays of one size.

    A converter of FFmpeg's is set up once for all frames of a size, which is most of the work for small ones.

    Args:
        size: (width, height) of the upright picture.
        stored: (width, height) of the file's first frame.
        transfer: of the file, where a frame does not say its own, or the installed PyAV does not tell it.

    Attributes:
        notes: what was done beyond scaling, in words.
    """

    def __init__(self, size: tuple[int, int], stored: tuple[int, int] | None = None, transfer: int = UNSAID) -> None:
        self.notes: dict[str, None] = {}
        self._size, self._stored, self._transfer = size, stored, transfer
        self._convert: Any = av.video.reformatter.VideoReformatter()
        self._clear: dict[str, bool] = {}

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB."""
        turn = turn_of(frame)
        width, height = turn.size(*self._size)
        self._look(frame)
        own = int(getattr(frame, "color_trc", UNSAID))
        transfer = self._transfer if own == UNSAID else own
        if transfer in TRANSFERS:
            self._note(f"the picture is HDR ({TRANSFERS[transfer]}) and was brought to standard range")
            pixels = standard_range(self._scaled(frame, width, height, "rgb48le"), transfer)
        elif self._may_be_clear(frame.format):
            pixels = self._on_black(self._scaled(frame, width, height, "rgba"))
        else:
            pixels = self._scaled(frame, width, height, "rgb24")
        return np.ascontiguousarray(turn(pixels)).astype(np.uint8, copy=False)

    def _scaled(self, frame: Any, width: int, height: int, form: str) -> Any:
        return self._convert.reformat(frame, width, height, form, **THREADS).to_ndarray()

    def _look(self, frame: Any) -> None:
        """What a reader should know of the frame."""
        if self._stored not in (None, (frame.width, frame.height)):
            self._note("the size of the picture changes within the file; all frames are brought to one size")
        if frame.interlaced_frame:
            self._note("the file is interlaced; the two fields of a frame are shown together")

    def _note(self, text: str) -> None:
        self.notes[text] = None

    def _may_be_clear(self, form: Any) -> bool:
        """Whether the format has transparent pixels."""
        if form.name not in self._clear:
            self._clear[form.name] = form.has_palette or any(part.is_alpha for part in form.components)
        return self._clear[form.name]

    def _on_black(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Transparent parts as a video player shows them."""
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        if (alpha == 255).all() or not alpha.any():  # some old palettes have no alpha at all
            return colours
        self._note("transparent parts of the picture are shown on black")
        shown = (colours.astype(np.uint16) * alpha + 127) // 255
        return shown.astype(np.uint8)
