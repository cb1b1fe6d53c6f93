"""Small video files for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

TICKS = 12_800  # a second in the time base of the files


def flat(colours: Iterable[int], width: int = 64, height: int = 48) -> list[NDArray[np.uint8]]:
    """One evenly grey picture per value."""
    return [np.full((height, width, 3), value, np.uint8) for value in colours]


def numbered(count: int) -> list[NDArray[np.uint8]]:
    """Pictures 0, 1, 2 and so on, each with its number in eight black or white bars, 64 x 48."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
    bars = np.repeat(bits.astype(np.uint8) * 255, 8, axis=1)
    return [np.ascontiguousarray(np.broadcast_to(bar[None, :, None], (48, 64, 3))) for bar in bars]


def numbers(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers of pictures made by :func:`numbered`, after encoding and decoding."""
    bars = frames.mean(axis=(1, 3)).reshape(len(frames), 8, -1).mean(axis=2) > 127
    return [int((row << np.arange(8)).sum()) for row in bars]


def noise_shots(lengths: Sequence[int], width: int = 64, height: int = 48) -> list[NDArray[np.uint8]]:
    """Shots of coarse random colours that hold still, so many frames each."""
    rng = np.random.default_rng(0)
    shots = [rng.integers(0, 256, (4, 4, 3), np.uint8) for _ in lengths]
    big = [np.kron(shot, np.ones((height // 4 + 1, width // 4 + 1, 1), np.uint8))[:height, :width] for shot in shots]
    return [picture for picture, length in zip(big, lengths, strict=True) for _ in range(length)]


def write_file(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    fps: int = 25,
    times: Sequence[float] | None = None,
    codec: str = "h264",
    pix_fmt: str = "yuv420p",
    **options: str,
) -> Path:
    """Encodes pictures, (height, width, 3) uint8 each, at a constant rate or at the given seconds."""
    form = {".mp4": "mp4", ".mkv": "matroska", ".avi": "avi"}[path.suffix]
    given = {"crf": "12", "preset": "ultrafast", **options} if codec == "h264" else options
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps, options=given)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps if times is None else TICKS)
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number if times is None else round(times[number] * TICKS)
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, degrees: int) -> Path:
    """Sets the display matrix of an mp4's video track, as phones do; degrees clockwise, a multiple of 90."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and number, reserved, layer and volume
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = (cos << 16, sin << 16, 0, -(sin << 16), cos << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(bytes(data))
    return path
