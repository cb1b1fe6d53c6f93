"""The file of a batch's answers: JSON lines that are whole at any moment, whoever is killed and however full the disk.

A line is never written into the file. A copy of the file with the line at its end is written beside it, and takes its
place. Runs on the same file take turns by a lock, and each takes up what others have added.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from segmo.errors import OptionError

Record = dict[str, Any]


class AnswerFile:
    """Answers and errors on disk.

    Args:
        path: the file; made if missing, with its folder.

    Raises:
        OptionError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # a link goes on pointing to it
        self._part = self.path.with_name(self.path.name + ".part")
        self._seen: tuple[int, int, int] | None = None
        self._records: list[Record] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        except OSError as error:
            raise self._cannot(error) from error

    def start(self) -> list[Record]:
        """Removes errors, which are tried again, and lines that are none; gives the answers that are left."""
        with self._writing():
            kept = [record for record in self._read() if "answer" in record]
            if not self.path.exists() or kept != self._read() or _damaged(self.path):
                self._part.write_bytes(b"".join(map(_line, kept)))
                self._replace()
            return list(kept)

    def add(self, record: Record, unless: Callable[[Sequence[Record]], bool] = lambda there: False) -> None:
        """Puts a line at the end.

        Args:
            record: the line.
            unless: asked about the lines that are there, of whichever run; where it says so, nothing is written. No
                other run writes between the question and the line.

        Raises:
            OptionError: it cannot be written; the file is as it was, and the message holds the line.
        """
        line = _line(record)
        try:
            with self._writing():
                before = self._read()
                if unless(before):
                    return
                if self.path.exists():
                    shutil.copyfile(self.path, self._part)
                with self._part.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                self._replace()
                self._records, self._seen = [*before, json.loads(line)], self._state()
        except OptionError as error:
            raise OptionError(f"{error}. What could not be written: {line.decode().strip()}") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._lock:
                self._part.unlink(missing_ok=True)  # of a run that was killed
                try:
                    yield
                finally:
                    self._part.unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot(error) from error

    def _replace(self) -> None:
        if self.path.exists():
            shutil.copymode(self.path, self._part)
        self._part.replace(self.path)

    def _read(self) -> list[Record]:
        """The lines, read again only if another run has written."""
        seen = self._state()
        if seen is None or seen != self._seen:
            self._records, self._seen = read_answers(self.path), seen
        return self._records

    def _state(self) -> tuple[int, int, int] | None:
        """What changes whenever the file is written; None without a file."""
        if not self.path.exists():
            return None
        state = self.path.stat()
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _cannot(self, error: OSError) -> OptionError:
        return OptionError(f"{self.path} cannot be written ({error}); the lines that it holds are whole")


def read_answers(path: Path) -> list[Record]:
    """The lines of an earlier run. What is no JSON object is left out: another program may have been killed there."""
    if not path.exists():
        return []
    return [record for record in map(_parsed, path.read_bytes().split(b"\n")) if record is not None]


def _damaged(path: Path) -> bool:
    lines = path.read_bytes().split(b"\n")
    return lines[-1] != b"" or any(_parsed(line) is None for line in lines[:-1])


def _parsed(line: bytes) -> Record | None:
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except ValueError:  # neither text nor JSON
        return None
    return found if isinstance(found, dict) else None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
