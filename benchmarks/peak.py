"""Peak memory of a part of a process's life, as Linux counts it."""

from __future__ import annotations

import ctypes
from pathlib import Path


def reset_peak() -> None:
    """Lets the kernel count this process's peak memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def release() -> None:
    """Gives freed memory back to the kernel, so that what runs next does not use it unnoticed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes: ``VmRSS`` is held now, ``VmHWM`` was held at most since the reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
