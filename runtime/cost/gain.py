"""What was measured of inductor: how much faster it makes a decoder layer, and on which machine."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VERSION = 2


@dataclass(frozen=True)
class Gain:
    """One layer by inductor against the same as it is, for calls with so many rows.

    Attributes:
        rows: of a call.
        ratio, low, high: how many times faster inductor's is: median and quartiles of pairs of runs in turns.
        compile_seconds: what compiling this one layer took with nothing on disk.
    """

    rows: int
    ratio: float
    low: float
    high: float
    compile_seconds: float


@dataclass(frozen=True)
class Fusion:
    """What was measured of inductor, and on what.

    Attributes:
        prefill, decode: with the rows of a prefill, and with one; None where inductor failed.
        date, processor, torch: when it was measured, and on what: figures of other ones say nothing.
        failed: why inductor failed; empty if it did not.
        version: of what is measured and how.
    """

    prefill: Gain | None
    decode: Gain | None
    date: str
    processor: str
    torch: str
    failed: str = ""
    version: int = VERSION

    @classmethod
    def parse(cls, stored: Mapping[str, Any] | None) -> Fusion | None:
        """What a file holds; None where it holds nothing, or what another version of SegMo measured.

        Raises:
            ValueError, TypeError: something else.
        """
        if stored is None or stored["version"] != VERSION:
            return None
        gains = {kind: Gain(**stored[kind]) if stored[kind] else None for kind in ("prefill", "decode")}
        return cls(**{**stored, **gains})

    def stale(self) -> str:
        """What has changed since; empty if nothing has."""
        if self.torch != torch.__version__:
            return f"measured with torch {self.torch}"
        return "" if self.processor == processor() else f"measured on another processor, {self.processor}"


@functools.cache
def processor() -> str:
    """Name of this machine's processor, with the widest instructions that PyTorch uses on it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    amx = ", AMX" if torch.cpu.get_capabilities().get("amx_bf16") else ""
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{amx}"
