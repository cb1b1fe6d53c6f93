"""What a caller hands in as a video, as a source that can be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from segmo.video.download import download
from segmo.video.objects import Decoder, decoder_of
from segmo.video.pictures import STILLS, Pictures, of_array, of_files, of_pictures
from segmo.video.source import File, VideoError, readable

# A path, an address, bytes of a file, an open file, a folder of pictures, a list of pictures, an array, a decoder.
Given = Any
Source = File | Pictures | Decoder


def as_source(given: Given) -> Source:
    """A video in any of the forms that users have.

    Args:
        given: one of

            - a path, or a ``file://`` address; ``~`` is the home folder. A folder is taken for its pictures, in the
              order of their names, in which numbers count as such;
            - an ``http://`` or ``https://`` address, which is loaded once;
            - the bytes of a video file, or a file that is open for reading;
            - a list of PIL images or arrays, or one array or tensor of frames, (F, height, width, 3) or
              (F, 3, height, width): uint8, or floats from 0 to 1;
            - a decoder of torchcodec or decord, or an object with the same methods.

    Raises:
        VideoError: it is none of these, or an address cannot be loaded.
    """
    if isinstance(given, File | Pictures | Decoder):
        return given
    if isinstance(given, str | os.PathLike):
        try:
            return _named(os.fspath(given))
        except (OSError, ValueError) as error:  # a name that is too long, or that holds a NUL
            raise VideoError(f"{readable(os.fspath(given))!r} is no name of a file here ({error})") from error
    if isinstance(given, bytes | bytearray | memoryview):
        return File(f"a video of {len(given):,} bytes", bytes(given))
    decoder = decoder_of(given)
    if decoder is not None:
        return decoder
    if hasattr(given, "read"):
        data = given.read()
        if isinstance(data, bytes):
            return File(str(getattr(given, "name", None) or f"a video of {len(data):,} bytes"), data)
    if hasattr(given, "__array__") and hasattr(given, "shape"):
        return of_array(given)
    if isinstance(given, Sequence):
        return of_pictures(given)
    raise VideoError(
        f"a {type(given).__name__} is no video; give a path, an address, bytes, a folder of pictures, a list of "
        "pictures, an array, or a decoder"
    )


def beside(folder: Path, name: str) -> str:
    """A name that stands in a file, counted from the file's folder unless it is an address or complete."""
    if urlsplit(name).scheme in ("http", "https", "file") or name.startswith("~"):
        return name
    return str(folder / name)


def _named(name: str | bytes) -> Source:
    text = os.fsdecode(name)
    parts = urlsplit(text) if "://" in text else None
    if parts is not None and parts.scheme in ("http", "https"):
        return download(text)
    if parts is not None and parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise VideoError(f"{readable(text)} is on another machine; give the path of a file that is here")
        text = os.fsdecode(unquote_to_bytes(parts.path))
    path = Path(text)
    if text.startswith("~") and not path.exists():
        path = Path(os.path.expanduser(text))  # noqa: PTH111  # leaves "~nobody" as it is
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in STILLS and not file.name.startswith(".")]
        if not files:
            raise VideoError(f"{readable(path)} is not a file, and as a folder it holds no pictures")
        return of_files(files, readable(path))
    if path.suffix.lower() in STILLS and path.is_file():
        return of_files([path], readable(path))
    return File(readable(path), path)
