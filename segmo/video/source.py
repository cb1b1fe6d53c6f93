"""Opening a video file, and what is wrong with one that cannot be read."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from segmo.errors import SegMoError

# A damaged header can ask for pictures of any size; 8K is 33 megapixels.
MAX_PIXELS = 1 << 26
# Demuxers that make pictures of what is no video: text as on an old terminal, and lists of other files.
_NO_VIDEO = {"tty", "concat", "hls", "dash", "image2", "ffmetadata"}


class VideoError(SegMoError):
    """Something cannot be read as video."""


@dataclass(frozen=True)
class File:
    """A video file, on disk or in memory.

    Attributes:
        name: for messages.
        data: its place, or its bytes.
        owner: keeps the file on disk while this is in use; None for files that are the user's.
    """

    name: str
    data: Path | bytes
    owner: Any = None

    def digest(self) -> str:
        """SHA-256 of the bytes."""
        if isinstance(self.data, bytes):
            return hashlib.sha256(self.data).hexdigest()
        with self.data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def state(self) -> tuple[int, ...]:
        """What changes when the file on disk is written or replaced."""
        if isinstance(self.data, bytes):
            return ()
        found = self.data.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Whether there is something to read at all.

        Raises:
            VideoError: there is no such file, or it is empty.
        """
        if isinstance(self.data, Path):
            if not self.data.exists():
                raise VideoError(f"there is no file {self}")
            if not self.data.is_file():
                raise VideoError(f"{self} is not a file")
            if self.data.stat().st_size:
                return
        elif self.data:
            return
        raise VideoError(f"{self} is empty (0 bytes)")

    def __str__(self) -> str:
        return self.name


def readable(path: Path | str) -> str:
    """A path as it can be printed anywhere, also where its bytes are no UTF-8."""
    return os.fsencode(path).decode(errors="replace")


_ADVICE = "play it to see whether it is whole, or convert it anew"


def stage_error(source: Any, what: str, advice: str = _ADVICE) -> VideoError:
    """The error for something that was opened and then failed."""
    return VideoError(f"{source} {what}; {advice}")


@contextmanager
def open_source(source: File) -> Iterator[Any]:
    """Opens a file; gives the container.

    Raises:
        VideoError: there is no such file, or it is not a video.
    """
    source.check()
    with _opened(source) as file:
        try:
            container = av.open(file, options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{source} is not a video that FFmpeg can read ({_short(error)})") from error
        with container:
            yield container


@contextmanager
def _opened(source: File) -> Iterator[Any]:
    """What PyAV opens. Names that FFmpeg would take for an address or a list of files are files here too."""
    if isinstance(source.data, bytes):
        yield io.BytesIO(source.data)
        return
    path = str(source.data.resolve())
    try:
        path.encode()
    except UnicodeEncodeError:  # a name that is no UTF-8, which PyAV cannot hand on
        with source.data.open("rb") as file:
            yield file
        return
    yield f"file:{path}"


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def video_streams(container: Any, source: File, number: int | None = None, threads: int = 1) -> list[Any]:
    """The video streams of a container, ready to decode; only the one with ``number`` where that is given.

    Args:
        container: opened.
        source: for messages.
        number: of a stream in the file.
        threads: of the decoder; 0 leaves it to FFmpeg.

    Raises:
        VideoError: there is none, or what is there asks for too much.
    """
    names = set(container.format.name.split(","))
    covers = av.stream.Disposition.attached_pic
    videos = list(container.streams.video)
    streams = [stream for stream in videos if not stream.disposition & covers]
    if names & _NO_VIDEO or not streams:
        cover = ", only a cover picture" if videos and not streams else ""
        raise VideoError(f"{source} has no video stream{cover} (FFmpeg takes it for {container.format.long_name})")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise VideoError(f"{source}: this build of FFmpeg has no decoder for its video")
    chosen = [stream for stream in known if number is None or stream.index == number]
    for stream in chosen:
        _prepare(stream, source, threads)
    return chosen


def _prepare(stream: Any, source: File, threads: int) -> None:
    context = stream.codec_context
    if context.width * context.height > MAX_PIXELS:
        raise stage_error(source, f"says that its pictures are {context.width} x {context.height} pixels")
    context.options = {"max_pixels": str(MAX_PIXELS)}
    if threads:
        context.thread_count = threads
    stream.thread_type = "AUTO" if threads != 1 else "NONE"


def frame_rate(stream: Any, default: float = 25.0) -> float:
    """Frames per second that the file gives; ``default`` where it gives none."""
    for rate in (stream.guessed_rate, stream.average_rate, stream.base_rate):
        if rate and math.isfinite(float(rate)) and 0 < float(rate) <= 1e6:
            return float(rate)
    return default
