"""Where a process leaves on disk what later ones need not make again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Held:
    """What a folder holds.

    Attributes:
        files, size: their number, and bytes.
    """

    files: int
    size: int

    def __str__(self) -> str:
        return f"{self.files:,} files, {self.size / 2**20:.1f} MiB" if self.files else "empty"


def own_folders() -> list[Path]:
    """Encoded videos, measured devices and tuned kernels; the last may be elsewhere."""
    from platformdirs import user_cache_path

    from segmo.runtime.kernels.tuned import cache_folder

    return sorted({user_cache_path("segmo"), cache_folder()})


def compiled_folders() -> list[Path]:
    """What inductor and Triton have compiled; both name what they keep by its source, options and versions."""
    from segmo.compat.inductor import disk_cache, triton_cache

    return list(dict.fromkeys((disk_cache(), triton_cache())))


def held(folders: Iterable[Path]) -> Held:
    """Files in folders; one inside another is counted once."""
    files = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    return Held(len(files), sum(file.stat().st_size for file in files))
