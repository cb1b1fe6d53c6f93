"""Frames sampled from a video file at a steady rate, as a video model's processor wants them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from segmo.errors import SegMoError

ROUNDING = 5e-4  # seconds; timestamps are whole multiples of the stream's time base


@dataclass(frozen=True)
class Video:
    """Sampled frames of a video file.

    Attributes:
        frames: (F, height, width, 3) uint8 RGB.
        seconds: (F,) float64, when each frame is shown.
        fps: sampled frames per second.
        path: the file they come from.
    """

    frames: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    fps: float
    path: Path

    def index_at(self, seconds: float) -> int:
        """Number of the first sampled frame shown at or after ``seconds``; F if there is none."""
        return int(np.searchsorted(self.seconds, seconds - ROUNDING))


def read_video(
    path: Path,
    fps: float = 1.0,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Video:
    """Decode a video file and keep the frame shown at every multiple of ``1 / fps`` seconds.

    Args:
        path: any file that PyAV can decode.
        fps: frames to keep per second.
        size: (width, height) to scale to; the file's own when None.
        progress: called with (frames decoded, frames the file says it has).

    Raises:
        SegMoError: the file has no video stream or no frame, or ``fps`` is not a positive number.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise SegMoError(f"a video is sampled at more than 0 frames per second, got {fps}")
    frames: list[NDArray[np.uint8]] = []
    seconds: list[float] = []
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise SegMoError(f"{path} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        start: float | None = None
        due = 0.0
        for number, frame in enumerate(container.decode(stream)):
            progress(number + 1, stream.frames)
            if frame.time is None:
                raise SegMoError(f"{path} has a frame without a timestamp")
            start = frame.time if start is None else start
            time = frame.time - start
            if time + ROUNDING < due:
                continue
            width, height = size or (frame.width, frame.height)
            frames.append(frame.reformat(width, height, "rgb24").to_ndarray().astype(np.uint8, copy=False))
            seconds.append(time)
            due = (math.floor((time + ROUNDING) * fps) + 1) / fps
    if not frames:
        raise SegMoError(f"{path} has no frame that can be decoded")
    return Video(np.stack(frames), np.asarray(seconds), fps, path)
