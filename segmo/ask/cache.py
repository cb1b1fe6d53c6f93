"""Tensors on disk by key: bounded in size, the least recently used leave first, shared by processes.

A file is written under another name and then renamed, so that no process sees half of one. What is there is only ever
replaced by the same. A file that cannot be read (a full disk, a crash of the machine) counts as missing and is removed.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segmo.checked import made_folder
from segmo.errors import OptionError

log = logging.getLogger(__name__)

GIB = 1 << 30
DEFAULT_BYTES = 4 * GIB
_OLD = 3600.0  # seconds after which an unfinished file belongs to no process that still runs


def default_folder() -> Path:
    """The user's cache folder for encoded videos."""
    return user_cache_path("segmo") / "videos"


class TensorCache:
    """A folder of entries.

    Args:
        folder: made if missing.
        max_bytes: of all entries together; more is removed when an entry is added.

    Raises:
        OptionError: there is no room for anything, or the folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_BYTES) -> None:
        if max_bytes < 1:
            raise OptionError(f"a cache holds at least one byte, got {max_bytes}")
        self.folder, self.max_bytes = folder, max_bytes
        try:
            made_folder(folder / "locks")
        except OptionError as error:
            raise OptionError(
                f"no cache of encoded videos can be kept: {error}. Name another folder (--cache-folder, or "
                "XDG_CACHE_HOME), or do without (--no-cache)"
            ) from error

    def get(self, key: str) -> tuple[dict[str, Tensor], str] | None:
        """Tensors and text of an entry, which is now the most recently used; None if there is none."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no iterator
                text = (file.metadata() or {})["text"]
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError, RuntimeError) as error:
            # It may be gone only now: safetensors opens a file twice, and another process may remove it in between.
            if path.exists():
                log.warning("%s cannot be read (%s) and is made anew", path, error)
                path.unlink(missing_ok=True)
            return None
        return tensors, text

    def put(self, key: str, tensors: Mapping[str, Tensor], text: str) -> None:
        """Adds an entry, and removes others while there are too many bytes.

        An entry that is larger than all may be together is not kept, and one that the disk does not take is logged.
        """
        self.put_all({key: (tensors, text)})

    def put_all(self, entries: Mapping[str, tuple[Mapping[str, Tensor], str]]) -> None:
        """As :meth:`put` for several entries at once; the folder is looked through once."""
        for key, (tensors, text) in entries.items():
            self._write(key, tensors, text)
        self._shrink()

    def _write(self, key: str, tensors: Mapping[str, Tensor], text: str) -> None:
        unfinished = self.folder / f"{uuid.uuid4().hex}.part"
        try:
            save_file(dict(tensors), unfinished, metadata={"text": text})
            if unfinished.stat().st_size <= self.max_bytes:
                unfinished.replace(self._path(key))
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written (%s), so it will be made again", self._path(key), error)
        finally:
            unfinished.unlink(missing_ok=True)

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Held while an entry is made, so that another process waits for it and does not make it too."""
        with FileLock(self.folder / "locks" / f"{key[:2]}.lock"):
            yield

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of each entry, the least recently used first."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            try:
                state = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            found.append((state.st_mtime, state.st_size, path))
        return sorted(found)

    def _shrink(self) -> None:
        with FileLock(self.folder / "locks" / "shrink.lock"):
            entries = self._entries()
            excess = sum(size for _, size, _ in entries) - self.max_bytes
            for _, size, path in entries:
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                excess -= size
            for path in self.folder.glob("*.part"):
                try:
                    if time.time() - path.stat().st_mtime > _OLD:
                        path.unlink(missing_ok=True)
                except FileNotFoundError:
                    continue
