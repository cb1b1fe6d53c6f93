"""Small video files for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

TICKS = 12_800  # a second in the time base of the files
FORMS = {
    ".mp4": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".gif": "gif",
}


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
    *,
    ticks: int = TICKS,
    mark: Callable[[Any], None] = lambda stream: None,
    packets: Callable[[list[Any]], list[Any]] = lambda packets: packets,
    movflags: str = "",
    container: Mapping[str, str] | None = None,
    **options: str,
) -> Path:
    """Encodes pictures, (height, width, 3 or 4) uint8 each, at a constant rate or at the given seconds.

    Args:
        path: its suffix says the container.
        pictures: to encode.
        fps: frames per second.
        times: of the pictures, instead.
        codec, pix_fmt: of the encoder.
        ticks: of a second in the time base, with ``times``.
        mark: may change the stream before the first frame.
        packets: may change what is written.
        movflags: of an mp4.
        container: further options of the container.
        **options: of the encoder.
    """
    form = FORMS[path.suffix]
    given = {"crf": "12", "preset": "ultrafast", **options} if codec == "h264" else options
    asked = {**(container or {}), **({"movflags": movflags} if movflags else {})}
    with av.open(str(path), "w", format=form, options=asked) as file:
        stream = file.add_stream(codec, rate=fps, options=given)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps if times is None else ticks)
        mark(stream)
        found = []
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pixels), format="rgba" if pixels.shape[-1] == 4 else "rgb24"
            )
            frame.pts = number if times is None else round(times[number] * ticks)
            frame.time_base = stream.codec_context.time_base
            found += stream.encode(frame)
        for packet in packets([*found, *stream.encode()]):
            file.mux(packet)
    return path


def sequential(path: Path, stream: int = 0) -> tuple[list[float], list[NDArray[np.uint8]], float]:
    """A plain decode from start to end: times from the first frame, the frames, and when the last one ends."""
    times, frames, lasts = [], [], 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(video=stream):
            times.append(float(frame.pts * frame.time_base))
            frames.append(frame.to_ndarray(format="rgb24"))
            lasts = float((frame.duration or 0) * frame.time_base)
    return [time - times[0] for time in times], frames, times[-1] - times[0] + lasts


def turn(path: Path, degrees: int) -> Path:
    """Sets the display matrix of an mp4's video track, as phones do; degrees clockwise, a multiple of 90."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and number, reserved, layer and volume
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = (cos << 16, sin << 16, 0, -(sin << 16), cos << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(bytes(data))
    return path
