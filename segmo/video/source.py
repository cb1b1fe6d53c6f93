"""Opening a video file, and what is wrong with one that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from segmo.errors import SegMoError

# A damaged header can ask for pictures of any size; 8K is 33 megapixels.
MAX_PIXELS = 1 << 26
# Demuxers that make pictures of what is no video: text as on an old terminal, and lists of other files.
_NO_VIDEO = {"tty", "concat", "hls", "dash", "image2", "ffmetadata"}


class VideoError(SegMoError):
    """A file cannot be read as video."""


def stage_error(path: Path, what: str) -> VideoError:
    """The error for a file that was opened and then failed."""
    return VideoError(f"{path} {what}; play it to see whether it is whole, or convert it anew")


def check_file(path: Path) -> None:
    """Whether there is something to read at all.

    Raises:
        VideoError: there is no such file, or it is empty.
    """
    if not path.exists():
        raise VideoError(f"there is no file {path}")
    if not path.is_file():
        raise VideoError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes)")


@contextmanager
def open_source(path: Path, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """Opens a local file; gives the container and its video stream, ready to decode.

    Args:
        path: the file. Names that FFmpeg would take for an address or a list of files are files here too.
        threads: of the decoder; 0 leaves it to FFmpeg.

    Raises:
        VideoError: there is no such file, or it is not a video.
    """
    check_file(path)
    try:
        container = av.open(f"file:{path.resolve()}", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} is not a video that FFmpeg can read ({_short(error)})") from error
    with container:
        yield container, _video_stream(container, path, threads)


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: Any, path: Path, threads: int) -> Any:
    names = set(container.format.name.split(","))
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if names & _NO_VIDEO or not streams:
        raise VideoError(f"{path} has no video stream (FFmpeg takes it for {container.format.long_name})")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise VideoError(f"{path}: this build of FFmpeg has no decoder for its video")
    if context.width * context.height > MAX_PIXELS:
        raise stage_error(path, f"says that its pictures are {context.width} x {context.height} pixels")
    context.options = {"max_pixels": str(MAX_PIXELS)}
    if threads:
        context.thread_count = threads
    stream.thread_type = "AUTO" if threads != 1 else "NONE"
    return stream


def frame_rate(stream: Any, default: float = 25.0) -> float:
    """Frames per second that the file gives; ``default`` where it gives none."""
    for rate in (stream.guessed_rate, stream.average_rate, stream.base_rate):
        if rate and math.isfinite(float(rate)) and 0 < float(rate) <= 1e6:
            return float(rate)
    return default
