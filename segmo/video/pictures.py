"""Pictures as a video: a folder of them, a list, or one array. Each is shown for a time of its own or an even share.

Legend: F pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from segmo.video.source import MAX_PIXELS, VideoError, readable
from segmo.video.times import Index, dense_rate

# Suffixes of files that hold pictures. Moving ones are among them; GIF goes the way of all video files.
STILLS = frozenset({".png", ".apng", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True)
class Pictures:
    """A row of pictures, each loaded when it is its turn.

    Attributes:
        name: for messages.
        loads: gives each as (height, width, 3) uint8 RGB.
        seconds: how long each is shown; None for ``1 / fps`` seconds of whoever reads.
        content: what their hash is made of.
    """

    name: str
    loads: Sequence[Callable[[], NDArray[np.uint8]]]
    seconds: tuple[float, ...] | None = None
    content: Callable[[], Iterator[bytes]] = field(default=lambda: iter(()))

    def digest(self) -> str:
        """SHA-256 of all pictures and of their times."""
        found = hashlib.sha256(repr(("pictures", len(self.loads), self.seconds)).encode())
        for part in self.content():
            found.update(hashlib.sha256(part).digest())
        return found.hexdigest()

    def check(self) -> None:
        """Whether there is a picture.

        Raises:
            VideoError: there is none.
        """
        if not self.loads:
            raise VideoError(f"{self} has no pictures")

    def index(self, fps: float) -> Index:
        """Their time line."""
        self.check()
        lasts = self.seconds or (1 / fps,) * len(self.loads)
        first = self.loads[0]()
        times = np.arange(len(lasts)) / fps if self.seconds is None else np.array([0.0, *accumulate(lasts[:-1])])
        rate = len(lasts) / sum(lasts)
        end = len(lasts) / fps if self.seconds is None else sum(lasts)
        size = first.shape[1], first.shape[0]
        return Index(0.0, times, times, rate, dense_rate(times, rate), end, size, size)

    def frames(self, index: Index, start: float) -> Iterator[tuple[float, Any]]:
        """Times and frames, from the picture that is shown at ``start``."""
        first = max(0, int(np.searchsorted(index.times, start + index.slack, side="right")) - 1)
        for number in range(first, len(self.loads)):
            yield float(index.times[number]), video_frame(self.loads[number]())

    def __str__(self) -> str:
        return self.name


def video_frame(pixels: NDArray[np.uint8]) -> Any:
    """A picture as a decoded frame."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")


def of_files(files: Sequence[Path], name: str) -> Pictures:
    """Files with a picture each, in the order of their names; or one file, which may hold a moving picture.

    Raises:
        VideoError: a single file is no picture.
    """
    ordered = sorted(files, key=_natural)
    seconds = _moving(ordered[0]) if len(ordered) == 1 else None
    loads = [lambda file=file: _load(file) for file in ordered]
    if seconds is not None:
        loads = [lambda number=number: _load(ordered[0], number) for number in range(len(seconds))]
    return Pictures(name, loads, seconds, lambda: (file.read_bytes() for file in ordered))


def of_pictures(pictures: Sequence[Any]) -> Pictures:
    """PIL images, arrays, or files with a picture each."""
    loads = [lambda one=one: _picture(one) for one in pictures]
    return Pictures(f"a list of {len(pictures)} pictures", loads, None, lambda: _contents(loads))


def of_array(array: Any) -> Pictures:
    """Frames in one array or tensor, (F, height, width, 3), (F, 3, height, width), or without colour or with alpha.

    Raises:
        VideoError: its shape or its values are none of frames.
    """
    frames = _numpy(array)
    name = f"an array {tuple(frames.shape)}"
    if frames.ndim == 3 and frames.shape[-1] in (3, 4):
        frames = frames[None]
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.ndim != 4 or not frames.size:
        raise VideoError(f"{name} holds no frames; give (frames, height, width, 3) or (frames, 3, height, width)")
    if frames.shape[-1] not in (1, 3, 4):
        if frames.shape[1] not in (1, 3, 4):
            raise VideoError(f"{name} has no colours; give (frames, height, width, 3) or (frames, 3, height, width)")
        frames = np.moveaxis(frames, 1, -1)
    scale = _scale(frames, name)
    loads = [lambda frame=frame: _colours(frame, scale) for frame in frames]
    return Pictures(name, loads, None, lambda: _contents(loads))


def _contents(loads: Sequence[Callable[[], NDArray[np.uint8]]]) -> Iterator[bytes]:
    for load in loads:
        pixels = load()
        yield repr(pixels.shape).encode() + pixels.tobytes()


def _natural(file: Path) -> tuple[list[tuple[int, Any]], str]:
    """2.png comes before 10.png."""
    parts = re.split(r"(\d+)", file.name)
    return [(0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in parts if part], file.name


def _moving(file: Path) -> tuple[float, ...] | None:
    """How long each picture of a moving one is shown; None for a still picture."""
    from PIL import Image, ImageSequence

    with _opened(file) as image:
        if getattr(image, "n_frames", 1) < 2 or image.format in ("TIFF", "MPO"):
            return None
        found = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            found.append(float(frame.info.get("duration", 0)) / 1000)
        assert isinstance(image, Image.Image)
    return tuple(each if each > 0 else 0.1 for each in found)  # a tenth of a second is what browsers take


def _opened(file: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{readable(file)} is not a picture that can be read ({error})") from error


def _load(file: Path, number: int = 0) -> NDArray[np.uint8]:
    with _opened(file) as image:
        try:
            image.seek(number)
            return _picture(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise VideoError(f"{readable(file)} is not a picture that can be read ({error})") from error


def _picture(one: Any) -> NDArray[np.uint8]:
    """Any single picture as (height, width, 3) uint8, upright, transparent parts on black."""
    from PIL import Image, ImageOps

    if isinstance(one, str | Path):
        return _load(Path(one))
    if not isinstance(one, Image.Image):
        return _single(one)
    if one.width * one.height > MAX_PIXELS:
        raise VideoError(f"a picture of {one.width} x {one.height} pixels is too large")
    upright = ImageOps.exif_transpose(one)
    if upright.mode.startswith(("I", "F")):  # 16 bits of grey
        grey = np.asarray(upright).astype(np.float64)
        return _colours(grey[..., None], 255 / 65535 if grey.max() > 255 else 1.0)
    if "A" in upright.mode or "transparency" in upright.info:
        black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
        upright = Image.alpha_composite(black, upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))


def _single(one: Any) -> NDArray[np.uint8]:
    array = _numpy(one) if hasattr(one, "__array__") else None
    if array is None or array.ndim not in (2, 3):
        shape = "" if array is None else f" {tuple(array.shape)}"
        raise VideoError(f"a {type(one).__name__}{shape} is no picture; give PIL images or arrays (height, width, 3)")
    return of_array(array[None] if array.ndim == 3 else array[None, ..., None]).loads[0]()


def _numpy(array: Any) -> NDArray[Any]:
    """On the CPU; bfloat16, which numpy lacks, as float32."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    return np.asarray(array)


def _scale(frames: NDArray[Any], name: str) -> float:
    """By which values become those of 8 bits.

    Raises:
        VideoError: they are none of a picture.
    """
    if frames.dtype == np.uint8:
        return 1.0
    if frames.dtype == np.uint16:
        return 255 / 65535
    if frames.dtype.kind not in "iuf":
        raise VideoError(f"{name} of {frames.dtype} holds no colours; give uint8, or floats from 0 to 1")
    least, most = float(frames.min()), float(frames.max())
    if not (least >= 0 and most <= 255):
        raise VideoError(f"{name} has values from {least:g} to {most:g}; give uint8, or floats from 0 to 1")
    return 255.0 if frames.dtype.kind == "f" and most <= 1 else 1.0


def _colours(frame: NDArray[Any], scale: float) -> NDArray[np.uint8]:
    """(height, width, 1, 3 or 4) of any range as RGB of 8 bits."""
    pixels = frame if scale == 1.0 and frame.dtype == np.uint8 else np.rint(frame * scale).astype(np.uint8)
    if pixels.shape[-1] == 4:
        return ((pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
