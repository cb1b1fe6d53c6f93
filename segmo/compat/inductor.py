"""Inductor: the rest of a graph handed to it, and its cache of source files. It is imported on first use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.fx import GraphModule

WHAT = "torch._inductor: compile_fx, codecache and cpp_builder"
VERSIONS = "torch 2.11 to 2.15"


def compile_graph(gm: GraphModule, inputs: Sequence[Any], settings: dict[str, Any], on_cpu: bool = False) -> Any:
    """A callable that does what the graph does, made under settings of inductor's.

    Args:
        on_cpu: ask for the C++ compiler first: inductor itself finds that there is none after most of its work.
    """
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.cpp_builder import get_cpp_compiler

    if on_cpu:
        get_cpp_compiler()
    return compile_fx(gm, list(inputs), config_patches=settings)


def fresh_cache() -> AbstractContextManager[None]:
    """Inside the block inductor finds nothing on disk, and what it leaves there is deleted."""
    from torch._inductor.utils import fresh_cache

    block: AbstractContextManager[None] = fresh_cache()
    return block


def mode_settings(mode: str) -> dict[str, Any]:
    """What a mode of ``torch.compile`` sets.

    Raises:
        RuntimeError: torch has no such mode.
    """
    import torch._inductor

    found: dict[str, Any] = torch._inductor.list_mode_options(mode)
    return found


def load_source(source: str) -> ModuleType:
    """Source text as a module. Its file is content-addressed, in inductor's cache folder."""
    from torch._inductor.codecache import PyCodeCache

    return PyCodeCache.load(source)


def disk_cache() -> Path:
    """Where inductor keeps what it has compiled; the folder is made when it first does."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def triton_cache() -> Path:
    """Where Triton keeps kernels that inductor has no part in."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def fits() -> str | None:
    """The modules must be there."""
    missing = [
        name for name in ("compile_fx", "codecache", "cpp_builder") if find_spec(f"torch._inductor.{name}") is None
    ]
    return f"torch._inductor has no {', '.join(missing)}" if missing else None
