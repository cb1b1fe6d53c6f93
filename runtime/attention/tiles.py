"""The tile schedule: which tiles of rows visit which tiles of keys. Made once per prefill, read by every
layer.

Legend: B batch, R query heads per key/value head, T work items.

Flat rows are (token, query head of the group) pairs numbered ``token * R + head``. A tile of flat rows never
crosses the end of a block (sinks, a segment, text between videos, the question), so all its rows see the same
prefix (sinks and earlier context) and a causal range of neighbouring keys, and no tile without a visible pair
is visited. A tile with many keys is split over several programs whose results are merged by logsumexp, as in
Flash-Decoding (Dao et al., 2023); items are launched longest first, which is the LPT rule (Graham, 1969) with the
hardware as the list scheduler.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.host import give
from segmo.runtime.schedule import RowSchedule, unpack

MIN_SPLIT = 8  # key tiles: a shorter split is not worth its partial result


@dataclass(frozen=True)
class Tiling:
    """What a tile schedule depends on beside the layout of the prompt.

    Attributes:
        block_m: flat rows of a tile.
        block_n: keys of a tile.
        repeats: R.
        groups: key/value heads; every work item is launched once for each.
        workers: programs that the device runs at a time.
    """

    block_m: int
    block_n: int
    repeats: int
    groups: int
    workers: int


@dataclass(frozen=True)
class TileSchedule:
    """Tables that a segment attention kernel reads.

    Attributes:
        items: (T, 8) int32, one work item per row: batch row, first flat row, end of flat rows, start and end
            of the visible prefix in ``prefix``, start and end of the neighbouring keys, and the slot of a
            split or -1.
        prefix: positions of sinks and context tokens of all batch rows, one after the other, 1-D int32.
        merges: (M, 8) int32, one split tile per row: batch row, first flat row, end of flat rows, first slot,
        slots.
        slots: partial results to make room for.
        padded: some positions belong to no block, so no kernel writes them.
        visited: tiles of keys that are visited, summed over work items.
        minimum: tiles of keys that these tiles of rows would visit if all their keys were neighbours.
        makespan: key tiles that the busiest of ``workers`` programs visits, over all groups.
    """

    items: Tensor
    prefix: Tensor
    merges: Tensor
    slots: int
    padded: bool
    visited: int
    minimum: int
    makespan: int


@dataclass(frozen=True)
class _Tile:
    """A tile of rows with its keys: ``prefix`` is a range of the prefix table, ``keys`` a range of
    positions.
    """

    batch: int
    rows: tuple[int, int]
    prefix: tuple[int, int]
    keys: tuple[int, int]

    def steps(self, block_n: int) -> int:
        """Key tiles to visit."""
        return sum(-(-(end - start) // block_n) for start, end in (self.prefix, self.keys))

    def split(self, block_n: int, parts: int) -> Iterator[_Tile]:
        """The tile in ``parts`` pieces of equally many key tiles (give or take one)."""
        steps = self.steps(block_n)
        in_prefix = -(-(self.prefix[1] - self.prefix[0]) // block_n)
        for part in range(parts):
            first, last = steps * part // parts, steps * (part + 1) // parts
            cut = [min(step, in_prefix) for step in (first, last)]
            own = [max(step - in_prefix, 0) for step in (first, last)]
            yield _Tile(
                self.batch,
                self.rows,
                _clip(self.prefix, cut[0] * block_n, cut[1] * block_n),
                _clip(self.keys, own[0] * block_n, own[1] * block_n),
            )


def _clip(span: tuple[int, int], start: int, end: int) -> tuple[int, int]:
    return min(span[0] + start, span[1]), min(span[0] + end, span[1])


def prefix_positions(row: RowSchedule) -> list[int]:
    """Sinks and context tokens of a row, ascending."""
    return [*range(row.start, row.sink_end), *(p for p in row.context if p >= row.sink_end)]


def blocks(row: RowSchedule) -> Iterator[tuple[int, int, int, int]]:
    """(first token, end, visible prefix, first neighbouring key) of each block that is not empty."""
    if len(row.segment_ends) <= 1:  # nothing is hidden but the future
        spans = [(row.start, row.end, 0, row.start)]
    else:
        shared = prefix_positions(row)
        spans = [(row.start, row.sink_end, 0, row.start)]
        start = row.sink_end
        for end in row.segment_ends:
            prefix = sum(position < start for position in shared)
            for first, last, all_before in row.cut_at_turns(start, end):
                spans.append((first, last, 0, row.start) if all_before else (first, last, prefix, start))
            start = end
        spans.append((start, row.end, 0, row.start))
    yield from (span for span in spans if span[0] < span[1])


def _row_tiles(batch: int, row: RowSchedule, offset: int, tiling: Tiling) -> Iterator[_Tile]:
    repeats = tiling.repeats
    for first, end, visible, key_start in blocks(row):
        for start in range(first * repeats, end * repeats, tiling.block_m):
            stop = min(start + tiling.block_m, end * repeats)
            keys = (key_start, (stop - 1) // repeats + 1)
            yield _Tile(batch, (start, stop), (offset, offset + visible), keys)


def _makespan(steps: list[int], groups: int, workers: int) -> int:
    """Key tiles of the busiest worker when each free worker takes the next item of a longest-first list."""
    busy = [0] * workers
    for length in steps:
        for _ in range(groups):
            heapq.heapreplace(busy, busy[0] + length)
    return max(busy)


def build(rows: list[RowSchedule], length: int, tiling: Tiling, device: torch.device) -> TileSchedule:
    """The tile schedule of a batch.

    Args:
        rows: one schedule per batch row.
        length: K, to see whether there is padding.
        tiling: tile sizes and the machine.
        device: where the tables go.
    """
    tiles: list[_Tile] = []
    prefix: list[int] = []
    for batch, row in enumerate(rows):
        tiles += _row_tiles(batch, row, len(prefix), tiling)
        prefix += prefix_positions(row)
    steps = [tile.steps(tiling.block_n) for tile in tiles]
    limit = max(MIN_SPLIT, math.ceil(sum(steps) * tiling.groups / tiling.workers))

    items: list[tuple[int, list[int]]] = []  # (key tiles, row of the table)
    merges: list[list[int]] = []
    slots = 0
    for tile, count in zip(tiles, steps, strict=True):
        parts = math.ceil(count / limit)
        if parts > 1:
            merges.append([tile.batch, *tile.rows, slots, parts, 0, 0, 0])
        for part in tile.split(tiling.block_n, parts):
            slot = slots if parts > 1 else -1
            slots += parts > 1
            row_of_table = [part.batch, *part.rows, *part.prefix, *part.keys, slot]
            items.append((part.steps(tiling.block_n), row_of_table))
    items.sort(key=lambda item: -item[0])

    return TileSchedule(
        items=_table([item for _, item in items], device, 8),
        prefix=_table(prefix, device),
        merges=_table(merges, device, 8),
        slots=slots,
        padded=any(row.start > 0 or row.end < length for row in rows),
        visited=sum(count for count, _ in items),
        minimum=sum(-(-_visible_keys(tile) // tiling.block_n) for tile in tiles),
        makespan=_makespan([count for count, _ in items], tiling.groups, tiling.workers),
    )


def _visible_keys(tile: _Tile) -> int:
    return tile.prefix[1] - tile.prefix[0] + tile.keys[1] - tile.keys[0]


def _table(values: Sequence[object], device: torch.device, *columns: int) -> Tensor:
    return give(np.array(values, dtype=np.int32).reshape(-1, *columns), device)


@functools.lru_cache(maxsize=16)
def _cached(packed: bytes, length: int, tiling: Tiling, device: torch.device) -> TileSchedule:
    schedule = torch.frombuffer(bytearray(packed), dtype=torch.int64) if packed else torch.empty(0, dtype=torch.float32)
    return build(unpack(schedule), length, tiling, device)


def tile_schedule(schedule: Tensor, length: int, tiling: Tiling, device: torch.device) -> TileSchedule:
    """The tile schedule of a packed schedule.

    Kept by content, so that the layers of one prefill share one: comparing a few kilobytes costs
    microseconds, building the tables milliseconds.

    Args:
        schedule: from :func:`segmo.runtime.schedule.attention_schedule`, 1-D int64 on the CPU.
        length: K.
        tiling: tile sizes and the machine.
        device: where the tables go.
    """
    return _cached(schedule.numpy().tobytes(), length, tiling, device)
