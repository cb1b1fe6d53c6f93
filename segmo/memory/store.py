"""A memory in a folder: one file per segment, and an index that names what belongs together.

A file is written under a name of its own and moved into place when it is whole; the index comes last, in one move. So
whatever is broken off leaves the folder as it was before, or as it is afterwards, with files that nobody names.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segmo.errors import CacheError, OptionError
from segmo.memory.block import COLUMNS, Block
from segmo.memory.packed import Packed

INDEX = "memory.json"
PREFIX, SUFFIX, PARTIAL = "memory-", ".safetensors", ".partial"


def as_folder(path: Any) -> Path:
    """A folder's path.

    Raises:
        OptionError: it is none.
    """
    try:
        return Path(path)
    except TypeError as error:
        raise OptionError(f"the folder of a memory is {path!r}; it must be a path") from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Makes a folder, in which files are written inside the block.

    Raises:
        CacheError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError, SafetensorError) as error:  # a name with a NUL is a ValueError
        raise CacheError(
            f"a memory cannot be written into {folder} ({error}); choose a folder that can be written, with enough room"
        ) from error


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Tensors in a new file of a folder; its name."""
    name = f"{PREFIX}{uuid.uuid4().hex}{SUFFIX}"
    partial = folder / f"{name}{PARTIAL}"
    save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, partial)
    _sync(partial)
    partial.replace(folder / name)
    return name


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, memory-mapped.

    Raises:
        CacheError: it is not there, or broken.
    """
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dictionary
    except Exception as error:
        raise CacheError(f"{path} cannot be read ({error}); watch the video again") from error


def write_block(folder: Path, block: Block) -> str:
    """A block in a folder; the name of its file."""
    if block.file is not None and block.file.parent == folder.resolve() and block.file.exists():
        return block.file.name  # another memory that was written to the folder has taken it away otherwise
    return write_tensors(folder, _tensors(block))


def read_block(folder: Path, name: str) -> Block:
    """A block of a folder, memory-mapped."""
    path = folder.resolve() / name
    tensors: dict[str, Any] = read_tensors(path)
    for name in _STATES:
        if name not in tensors:
            parts = {part: tensors.pop(f"{name}.{part}") for part in _PACKED}
            tensors[name] = Packed(**parts, dtype=tensors["features"].dtype)
    return Block(**tensors, file=path, place="disk")


_STATES, _PACKED = ("keys", "values"), ("number", "scale", "channel")


def _tensors(block: Block) -> dict[str, Tensor]:
    found: dict[str, Any] = {name: getattr(block, name) for name in (*COLUMNS, "features", *_STATES)}
    for name in _STATES:
        if isinstance(found[name], Packed):
            packed = found.pop(name)
            found |= {f"{name}.{part}": getattr(packed, part) for part in _PACKED}
    return found


def write_index(folder: Path, index: Mapping[str, Any], names: Sequence[str]) -> None:
    """Puts the index in place, then takes away files that it does not name."""
    partial = folder / f"{PREFIX}{uuid.uuid4().hex}{PARTIAL}"
    partial.write_text(json.dumps(index), encoding="utf-8")
    _sync(partial)
    partial.replace(folder / INDEX)
    for path in folder.glob(f"{PREFIX}*"):  # whatever else is in the folder is not ours
        if path.name not in names and path.suffix in (SUFFIX, PARTIAL):
            path.unlink(missing_ok=True)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder.

    Raises:
        CacheError: there is none.
    """
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CacheError(f"{folder} holds no memory ({error}); segmo watch and memory.save write one") from error
    if not isinstance(found, dict) or "identity" not in found:
        raise CacheError(f"{folder} holds no memory: its {INDEX} is of something else")
    return found


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
