"""Measures the rates of the cost model on the device at hand, in some seconds.

Legend: n rows, H hidden size, I intermediate size, A query heads, G key/value heads, D head size, p keys.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.attention.partial import partial_attention
from segmo.runtime.cost.device import DEVICES, Device
from segmo.runtime.cost.gain import processor
from segmo.runtime.cost.shape import ModelShape

ROWS = 1024  # rows of the measured products: a segment's worth
LAYER_ROWS = 3072  # rows of the measured layer: about what a rank has; its steps then do not fit into any cache
_LAYER_RUNS = 3
_RUNS = 7
_TINY_CALLS = 200
# Causal (n, None) and full (n, p) attention blocks that the two attention constants are fitted to.
_BLOCKS = ((256, None), (512, None), (1024, None), (2048, None), (256, 2048), (1024, 512), (1024, 2048))


@dataclass(frozen=True)
class Timer:
    """Seconds of a call on a device: the best of some runs, because other work only ever slows one down.

    A CPU rank with one thread is timed by its processor time, which other processes on its core do not stretch.
    """

    device: torch.device
    runs: int = _RUNS

    def __call__(self, act: Callable[[], object]) -> float:
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if alone else time.perf_counter
        seconds = []
        for _ in range(self.runs + 1):
            self._finish()
            start = clock()
            act()
            self._finish()
            seconds.append(clock() - start)
        return min(seconds[1:])

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _gemm_flops(shape: ModelShape, like: Tensor, timer: Timer) -> float:
    """FLOP/s over the products of one decoder layer at ``ROWS`` rows."""
    widths = [
        (shape.hidden, shape.heads * shape.head_size),
        (shape.hidden, shape.kv_heads * shape.head_size),
        (shape.hidden, shape.kv_heads * shape.head_size),
        (shape.heads * shape.head_size, shape.hidden),
        (shape.hidden, shape.intermediate),
        (shape.hidden, shape.intermediate),
        (shape.intermediate, shape.hidden),
    ]
    seconds = 0.0
    for wide, out in widths:
        x_nH, weight = like.new_ones(ROWS, wide), like.new_ones(out, wide)
        seconds += timer(lambda x=x_nH, w=weight: torch.nn.functional.linear(x, w))  # type: ignore[misc]
    return shape.linear_flops * ROWS / seconds


def _norm(x_nH: Tensor, weight_H: Tensor) -> Tensor:
    wide = x_nH.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight_H * scaled.to(x_nH.dtype)


def _rotate(x_AnD: Tensor, cos_nD: Tensor, sin_nD: Tensor) -> Tensor:
    left, right = x_AnD.chunk(2, dim=-1)
    return x_AnD * cos_nD + torch.cat([-right, left], dim=-1) * sin_nD


def _layer(shape: ModelShape, like: Tensor) -> Callable[[], object]:
    """A decoder layer without its attention, as a model that is not compiled runs it."""
    inner, rows = shape.intermediate, LAYER_ROWS
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    widths = {"qkv": (shape.hidden, query + 2 * key), "out": (query, shape.hidden)}
    widths |= {"gate": (shape.hidden, inner), "up": (shape.hidden, inner), "down": (inner, shape.hidden)}
    weights = {name: like.new_ones(out, wide) for name, (wide, out) in widths.items()}
    linear = torch.nn.functional.linear
    start_nH, weight_H = like.new_ones(rows, shape.hidden), like.new_ones(shape.hidden)
    cos_nD = like.new_ones(rows, shape.head_size)

    def run() -> Tensor:
        normed = _norm(start_nH, weight_H)
        qkv_nX = linear(normed, weights["qkv"])
        q_AnD, _ = (
            _rotate(x_nX.reshape(rows, -1, shape.head_size).transpose(0, 1), cos_nD, cos_nD)
            for x_nX in (qkv_nX[:, :query], qkv_nX[:, query : query + key])
        )
        x_nH = start_nH + linear(q_AnD.transpose(0, 1).flatten(1), weights["out"])
        normed = _norm(x_nH, weight_H)
        gate_nI = torch.nn.functional.silu(linear(normed, weights["gate"]))
        return x_nH + linear(gate_nI * linear(normed, weights["up"]), weights["down"])

    return run


def _memory_bytes_per_s(shape: ModelShape, like: Tensor, timer: Timer, gemm_flops: float) -> float:
    """Bytes per second of a layer's elementwise steps: what the layer takes beyond its products.

    Measured inside the layer, because a step alone finds its input in the cache and its output's memory at hand, which
    makes it about half as fast again as it is between products.
    """
    whole = dataclasses.replace(timer, runs=min(timer.runs, _LAYER_RUNS))(_layer(shape, like))
    products = shape.linear_flops * LAYER_ROWS / gemm_flops
    return shape.elementwise_bytes * LAYER_ROWS / max(whole - products, 0.05 * whole)


def _attention_rate(shape: ModelShape, like: Tensor, timer: Timer) -> tuple[float, float]:
    """FLOP/s of flash attention and keys per causal row that its tiles visit in vain, by least squares."""
    groups, size = shape.kv_heads, shape.head_size
    work, seconds = [], []
    for rows, keys in _BLOCKS:
        q = like.new_ones(groups, shape.heads // groups, rows, size)
        kv = like.new_ones(groups, keys or rows, size)
        causal = keys is None
        pairs = rows * (rows + 1) / 2 if keys is None else rows * keys
        work.append((pairs, rows if causal else 0))
        seconds.append(timer(lambda q=q, kv=kv, c=causal: partial_attention(q, kv, kv, 0.1, c)))  # type: ignore[misc]
    # Each measurement counts by its relative error.
    system = np.asarray(work, dtype=np.float64) / np.asarray(seconds)[:, None]
    per_pair, per_row = map(float, np.linalg.lstsq(system, np.ones(len(work)), rcond=None)[0])
    if per_row < 0:  # tiles on the diagonal are free: fit the rate alone
        per_row = 0.0
        per_pair = float(system[:, 0].sum() / (system[:, 0] ** 2).sum())
    return shape.pair_flops / per_pair, per_row / per_pair


def measure_device(device: torch.device, dtype: torch.dtype, shape: ModelShape, timer: Timer | None = None) -> Device:
    """Rates of one device, used by one process with its current number of threads; the link is not measured.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: of weights and activations.
        shape: the model whose products and attention are timed.
    """
    timer = timer or Timer(device)
    like = torch.ones(1, device=device, dtype=dtype)
    attention, tile_keys = _attention_rate(shape, like, timer)
    gemm = _gemm_flops(shape, like, timer)

    def tiny() -> None:
        for _ in range(_TINY_CALLS):
            torch.add(like, like)

    where = f", on {processor()}" if device.type == "cpu" else ""  # what is stored may be read on another machine
    return dataclasses.replace(
        DEVICES["cpu"],
        name=device_title(device),
        gemm_flops=gemm,
        attention_flops=attention,
        tile_keys=tile_keys,
        memory_bytes_per_s=_memory_bytes_per_s(shape, like, timer, gemm),
        memory_bytes=_memory_bytes(device),
        call_seconds=timer(tiny) / _TINY_CALLS,
        source=f"measured with {str(dtype).removeprefix('torch.')}, torch {torch.__version__}{where}",
    )


def device_title(device: torch.device) -> str:
    """Name of a device and, for the CPU, the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def _memory_bytes(device: torch.device) -> int:
    """Memory that is free now: of the GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import os

    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
