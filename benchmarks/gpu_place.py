"""Where the GPU benchmark runs, and how it takes time: on a GPU, or tiny and interpreted in its own test."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """A device.

    Attributes:
        device: a CUDA (or ROCm) device. The CPU only where kernels are interpreted, to test the benchmark itself.
    """

    device: torch.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "CPU (interpreted)"

    def randn(self, seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same normal numbers on every call."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=dtype)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median time of a launch with cold caches; off the GPU, where times mean nothing, of one run."""
        if self.on_gpu:
            from triton.testing import do_bench

            return float(do_bench(run, warmup=25, rep=100, return_mode="median")) / 1e3
        return self._once(run)

    def long_seconds(self, run: Callable[[], Any], runs: int = 3) -> tuple[float, float]:
        """Time of the first call of something that takes many launches, and the median of the calls after it."""
        first, *times = (self._once(run) for _ in range(1 + (runs if self.on_gpu else 1)))
        return first, sorted(times)[len(times) // 2]

    def _once(self, run: Callable[[], Any]) -> float:
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def stops(self, run: Callable[[], Any]) -> list[str]:
        """The lines of a run at which the host waited for the GPU; none elsewhere, where it never does."""
        if not self.on_gpu:
            return []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        said = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
        return [f"{warning.filename}:{warning.lineno}" for warning in said]

    def free_bytes(self) -> int:
        """Memory that a model may take."""
        gc.collect()
        if not self.on_gpu:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def relative_error(out: Tensor, expected: Tensor) -> float:
    """||out - expected|| / ||expected||."""
    return float((out.double() - expected.double()).norm() / expected.double().norm())
