"""Tile sizes found by timing candidates on the GPU at hand, kept on disk.

A result belongs to one device name, one version of Triton and one kernel source (of the default config), so
neither another machine nor another version of SegMo can read it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from segmo.errors import KernelError
from segmo.runtime.kernels.configs import attention_config, attention_spec
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import AttentionSpec, Config


def cache_folder() -> Path:
    """``$SEGMO_CACHE``, or ``segmo`` in the user's cache folder."""
    if folder := os.environ.get("SEGMO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "segmo"


def candidates(architecture: str, head_size: int, dtype: str) -> list[Config]:
    """The default config first, then what else is worth timing: each dimension one step smaller or larger."""
    default = attention_config(architecture, head_size, dtype)
    options = {
        default,
        *(dataclasses.replace(default, block_m=m) for m in (default.block_m // 2, 128)),
        *(dataclasses.replace(default, block_n=n) for n in (default.block_n // 2, default.block_n * 2)),
        *(dataclasses.replace(default, warps=w) for w in (4, 8)),
        *(dataclasses.replace(default, stages=s) for s in (default.stages - 1, default.stages + 1)),
    }
    usable = {c for c in options if c.block_m >= 16 and c.block_n >= 16 and c.stages >= 1}
    return [default, *sorted(usable - {default}, key=dataclasses.astuple)]


def _file(device_name: str, spec: AttentionSpec) -> Path:
    import triton

    key = f"{device_name} {triton.__version__} {render(spec).hash}"
    return cache_folder() / "tuned" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def load(device_name: str, spec: AttentionSpec) -> Config | None:
    """The config that was found for the default ``spec`` on this device, or None.

    Raises:
        KernelError: the file is there and cannot be read as a config.
    """
    path = _file(device_name, spec)
    if not path.exists():
        return None
    try:
        return Config(**json.loads(path.read_text())["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise KernelError(f"the tuning result {path} is damaged ({error}); delete it and tune again") from error


def tune(
    device_name: str,
    spec: AttentionSpec,
    choices: Iterable[Config],
    seconds: Callable[[AttentionSpec], float],
) -> Config:
    """Times each config, keeps the fastest on disk and returns it.

    Args:
        device_name: such as ``torch.cuda.get_device_name()``.
        spec: the default spec.
        choices: configs to time. One that does not fit the device, or computes something wrong, does not count.
        seconds: time of one launch of a spec; raises what Triton raises if it does not fit, and KernelError if its
            output is wrong.

    Raises:
        KernelError: no config fits the device and computes what it should.
    """
    import triton

    times: dict[Config, float] = {}
    for config in choices:
        try:
            times[config] = seconds(dataclasses.replace(spec, config=config))
        except (triton.OutOfResources, triton.CompilationError, KernelError):
            continue
    if not times:
        raise KernelError(f"none of the tile sizes fits {device_name} and computes what it should")
    best = min(times, key=lambda config: times[config])
    path = _file(device_name, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    timed = [{**dataclasses.asdict(config), "seconds": time} for config, time in times.items()]
    found = {"device": device_name, "config": dataclasses.asdict(best), "timed": timed}
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)  # another process never reads half a file
    _loaded.cache_clear()
    return best


@functools.lru_cache(maxsize=64)
def _loaded(device_name: str, spec: AttentionSpec, folder: Path) -> Config | None:
    return load(device_name, spec)


def tuned_attention_spec(
    architecture: str,
    device: torch.device,
    head_size: int,
    dtype: str,
    repeats: int,
    strides: tuple[int, int] | None = None,
) -> AttentionSpec:
    """The spec of segment attention with the tile sizes that were tuned for this device, else with the
    default ones.
    """
    default = attention_spec(architecture, head_size, dtype, repeats)
    config = None
    if device.type == "cuda":
        config = _loaded(torch.cuda.get_device_name(device), default, cache_folder())
    return attention_spec(architecture, head_size, dtype, repeats, strides, config)
