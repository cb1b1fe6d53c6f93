"""A static performance model: what a kernel must move and multiply, and the least time that takes on a data
    sheet.

Predicted, not measured: a roofline (Williams et al., 2009) knows neither latency nor cache misses nor clocks.
It says which resource binds and what speed-up a layout can have at most.

Legend: B batch, A query heads, G key/value heads, R = A / G, K tokens, D head size, V video tokens, H hidden
    size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from segmo.runtime.attention.tiles import TileSchedule, Tiling
from segmo.runtime.kernels.hardware import Machine

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Prediction:
    """Work of one launch and its roofline time.

    Attributes:
        flops: multiplications and additions, masked ones included.
        bytes: least traffic with device memory: every input read once, every output written once.
        tiles: tiles of keys (or of tokens) that are visited, over all programs.
        seconds: the larger of FLOPs at the matrix peak, slowed by an uneven spread of the tiles, and bytes at
            the memory's peak.
        bound: ``"compute"`` or ``"memory"``.
    """

    flops: float
    bytes: float
    tiles: int
    seconds: float
    bound: str


def _roofline(machine: Machine, dtype: str, flops: float, moved: float, tiles: int, uneven: float) -> Prediction:
    compute = flops / machine.matrix_flops[dtype] * uneven
    memory = moved / machine.bandwidth
    bound = "compute" if compute >= memory else "memory"
    return Prediction(flops, moved, tiles, max(compute, memory), bound)


def segment_attention(
    machine: Machine, tiles: TileSchedule, tiling: Tiling, batch: int, length: int, head_size: int, dtype: str
) -> Prediction:
    """One layer's segment attention.

    Args:
        machine: from :mod:`segmo.runtime.kernels.hardware`.
        tiles: the tile schedule, built for ``tiling``.
        batch, length, head_size, dtype: B, K and D of q; the heads are in ``tiling``.
    """
    visited = tiles.visited * tiling.groups
    flops = 4.0 * tiling.block_m * tiling.block_n * head_size * visited
    rows = batch * length * tiling.groups
    moved = rows * head_size * BYTES[dtype] * (2 * tiling.repeats + 2) + rows * tiling.repeats * 4
    # Splits are written and read once in fp32.
    moved += 2 * tiles.slots * tiling.groups * tiling.block_m * (head_size + 1) * 4
    even = math.ceil(visited / tiling.workers)
    return _roofline(machine, dtype, flops, moved, visited, tiles.makespan / even if even else 1.0)


def decode(
    machine: Machine,
    batch: int,
    groups: int,
    repeats: int,
    keys: int,
    head_size: int,
    dtype: str,
    block_m: int,
) -> Prediction:
    """One new token over a cache of ``keys`` keys; the query heads of a group are padded to ``block_m``
    rows.
    """
    flops = 4.0 * batch * groups * block_m * keys * head_size
    moved = batch * groups * head_size * BYTES[dtype] * (2 * keys + 2 * repeats)
    return _roofline(machine, dtype, flops, moved, batch * groups * math.ceil(keys / 64), 1.0)


def scan(machine: Machine, tokens: int, frames: int, hidden: int, dtype: str) -> Prediction:
    """The pass over the video features. Its arithmetic runs on vector units and never binds."""
    moved = tokens * hidden * BYTES[dtype] + 2 * frames * hidden * 4
    moved += 2 * 2 * tokens * math.ceil(hidden / 256) * 4 + tokens * 8
    return Prediction(5.0 * tokens * hidden, moved, math.ceil(tokens / 16), moved / machine.bandwidth, "memory")


def compact(machine: Machine, length: int, kept: int, row_bytes: int) -> Prediction:
    """Top-k and the copy of the kept rows; ``row_bytes`` of all payloads per token. Comparing runs out of
    the cache.
    """
    moved = length * 4 + kept * (2 * row_bytes + 8)
    return Prediction(0.0, moved, math.ceil(length / 16), moved / machine.bandwidth, "memory")


def merge(machine: Machine, rows: int, parts: int, head_size: int, part_dtype: str, dtype: str) -> Prediction:
    """The logsumexp merge of ``parts`` partial results of ``rows`` rows."""
    moved = rows * (parts * (head_size * BYTES[part_dtype] + 4) + head_size * BYTES[dtype] + 4)
    return Prediction(4.0 * rows * parts * head_size, moved, math.ceil(rows / 16), moved / machine.bandwidth, "memory")
