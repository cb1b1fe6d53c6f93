"""A video at an http(s) address: loaded once into a file of its own, which goes when nothing uses it any more."""

from __future__ import annotations

import http.client
import shutil
import tempfile
import urllib.error
import urllib.request
import weakref
from pathlib import Path

from segmo.video.source import File, VideoError

TIMEOUT = 60.0  # seconds without a byte


class _Folder:
    """A folder that is removed with this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="segmo-"))
        weakref.finalize(self, shutil.rmtree, self.path, True)


def download(address: str) -> File:
    """Loads a file.

    Raises:
        VideoError: it cannot be had, or not all of it.
    """
    folder = _Folder()
    path = folder.path / "video"
    request = urllib.request.Request(address, headers={"User-Agent": "segmo"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            wanted = answer.headers.get("Content-Length")
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise VideoError(f"there is no file to be had at {address}: {error}") from error
    size = path.stat().st_size
    if wanted is not None and wanted.isdecimal() and size < int(wanted):
        raise VideoError(f"{address} broke off after {size:,} of {int(wanted):,} bytes; try again")
    return File(address, path, folder)
