"""The tile schedule: every visible pair once, no tile for nothing, long tiles split."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import rows

from segmo.runtime.attention.reference import dense_mask
from segmo.runtime.attention.tiles import MIN_SPLIT, TileSchedule, Tiling, build
from segmo.runtime.schedule import RowSchedule

CPU = torch.device("cpu")


def _visits(tiles: TileSchedule, length: int, batch: int, repeats: int) -> torch.Tensor:
    """How often each (flat row, key) pair is visited and not masked, (B, K * R, K)."""
    visits = torch.zeros(batch, length * repeats, length, dtype=torch.int32)
    for b, first, end, prefix_start, prefix_end, key_start, key_end, _ in tiles.items.tolist():
        for position in tiles.prefix[prefix_start:prefix_end].tolist():
            visits[b, first:end, position] += 1
        for flat in range(first, end):
            visits[b, flat, key_start : min(key_end, flat // repeats + 1)] += 1
    return visits


@given(data=st.data())
def test_every_visible_pair_is_visited_once(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 120))
    schedule = data.draw(st.lists(rows(length), min_size=1, max_size=2))
    repeats = data.draw(st.sampled_from([1, 2, 7]))
    workers = data.draw(st.sampled_from([1, 8, 500]))
    tiles = build(schedule, length, Tiling(16, 8, repeats, 1, workers), CPU)
    expected = torch.stack([dense_mask(row, length) for row in schedule]).repeat_interleave(repeats, dim=1)
    assert torch.equal(_visits(tiles, length, len(schedule), repeats), expected.int())


@given(data=st.data())
def test_no_tile_is_visited_for_nothing(data: st.DataObject) -> None:
    """At most one tile more than the minimum for each tile of rows: prefix and own keys both end in a part
    of a tile.
    """
    length = data.draw(st.integers(1, 300))
    schedule = [data.draw(rows(length))]
    tiles = build(schedule, length, Tiling(32, 16, 2, 1, 8), CPU)
    row_tiles = len({(item[0], item[1]) for item in tiles.items.tolist()})
    assert tiles.minimum <= tiles.visited <= tiles.minimum + row_tiles


def test_visits_of_a_long_video() -> None:
    """16 384 tokens in 8 segments: a tenth of the tiles that full attention visits."""
    ends = tuple(range(64 + 2036, 64 + 8 * 2036 + 1, 2036))
    row = RowSchedule(0, 64, ends, 16384, tuple(range(64, 264)))
    tiling = Tiling(128, 64, 7, 4, 264)
    tiles = build([row], 16384, tiling, CPU)
    full = build([RowSchedule(0, 0, (16384,), 16384, ())], 16384, tiling, CPU)
    assert tiles.visited < 1.05 * tiles.minimum
    assert tiles.visited < 0.17 * full.visited


def test_long_tiles_do_not_leave_the_machine_idle() -> None:
    """A question of one tile over 32k keys would alone take 512 steps; split, no worker is busier than the
    others.
    """
    row = RowSchedule(0, 0, tuple(range(1024, 32769, 1024)), 32784, ())
    tiles = build([row], 32784, Tiling(128, 64, 8, 1, 264), CPU)
    ideal = tiles.visited / 264
    assert tiles.makespan < 1.1 * ideal + 1
    steps = [-(-(item[4] - item[3]) // 64) + -(-(item[6] - item[5]) // 64) for item in tiles.items.tolist()]
    assert steps == sorted(steps, reverse=True)
    assert sum(steps) == tiles.visited


def test_short_tiles_are_not_split() -> None:
    tiles = build([RowSchedule(0, 0, (64,), MIN_SPLIT * 16, ())], MIN_SPLIT * 16, Tiling(16, 16, 1, 1, 10**6), CPU)
    assert tiles.slots == 0
    assert tiles.merges.shape == (0, 8)


def test_an_empty_batch_row_gives_no_items() -> None:
    tiles = build([RowSchedule(0, 0, (), 0, ())], 4, Tiling(16, 16, 1, 1, 8), CPU)
    assert tiles.items.shape == (0, 8)
    assert tiles.padded
