"""A cut cache against lists of positions: turns, crops, copies and rows, whatever their order. No model runs here.

Keys and values are the positions themselves, so what a cache holds can be read.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from segmo.errors import CacheError
from segmo.runtime.cache import CutLayer, CutSlidingLayer, mark_cut


def as_keys(rows: list[list[int]]) -> torch.Tensor:
    """(B, 1, M, 1)"""
    return torch.tensor(rows, dtype=torch.float32)[:, None, :, None]


class Reference:
    """What a conversation's cache has to say: positions that are held, row by row."""

    def __init__(self, prompt: int, kept: list[list[int]], window: int | None) -> None:
        self.seen = self.end = prompt
        self.rows, self.window = kept, window

    def held(self) -> list[list[int]]:
        return self.rows if self.window is None else [row[-(self.window - 1) :] for row in self.rows]

    def add(self, count: int) -> None:
        self.rows = [[*row, *range(self.seen, self.seen + count)] for row in self.rows]
        self.seen += count

    def crop(self, count: int) -> bool:
        """Whether it can be done: of the prompt, nothing was dropped behind the place."""
        left = self.seen - count
        if any(set(range(left, self.end)) - set(row) for row in self.rows):
            return False
        self.rows = [[place for place in row if place < left] for row in self.rows]
        self.seen, self.end = left, min(self.end, left)
        return True

    def mask(self, new: int, padding: torch.Tensor) -> list[list[list[bool]]]:
        """Which held and new keys each new row sees."""
        width = self.window or self.seen + new
        found = []
        for row, keys in enumerate(self.held()):
            places = [*keys, *range(self.seen, self.seen + new)]
            found.append(
                [
                    [0 <= at - key < width and bool(padding[row, key]) for key in places]
                    for at in range(self.seen, self.seen + new)
                ]
            )
        return found


def check(cache: Any, expected: Reference, draw: Any) -> None:
    layer = cache.layers[0]
    held = expected.held()
    assert cache.get_seq_length() == layer.seen == expected.seen
    assert layer.held == len(held[0])
    assert torch.equal(layer.keys, as_keys(held))
    assert torch.equal(layer.values, as_keys(held))
    assert layer.positions.expand(len(held), -1).tolist() == held
    new = draw(st.integers(1, 3))
    padding = torch.tensor(
        draw(
            st.lists(
                st.lists(st.booleans(), min_size=expected.seen + new, max_size=expected.seen + new),
                min_size=len(held),
                max_size=len(held),
            )
        )
    )
    assert layer.get_mask_sizes(new)[0] == len(held[0]) + new
    if isinstance(layer, CutSlidingLayer):
        assert layer.window_mask(padding, new)[:, 0].tolist() == expected.mask(new, padding)
    else:
        columns = layer.held_columns(padding)
        wanted = [
            [bool(padding[row, key]) for key in [*keys, *range(expected.seen, expected.seen + new)]]
            for row, keys in enumerate(held)
        ]
        assert columns.tolist() == wanted


@given(data=st.data())
def test_whatever_is_done_with_a_cut_cache_it_holds_what_the_lists_say(data: st.DataObject) -> None:
    draw = data.draw
    rows, length, window = draw(st.integers(1, 2)), draw(st.integers(2, 12)), draw(st.none() | st.integers(2, 8))
    count = draw(st.integers(1, length - 1))
    kept = [sorted(draw(st.permutations(range(length)))[:count]) for _ in range(rows)]
    cache: Any = DynamicCache()
    cache.layers = [DynamicLayer() if window is None else DynamicSlidingWindowLayer(sliding_window=window)]
    cache.layers[0].update(as_keys(kept), as_keys(kept))
    mark_cut(cache, length, torch.tensor(kept))
    assert type(cache.layers[0]) is (CutLayer if window is None else CutSlidingLayer)
    expected = Reference(length, kept, window)
    check(cache, expected, draw)
    steps = ["turn", "copy", "rows", "repeat", *([] if window else ["crop"])]
    for step in draw(st.lists(st.sampled_from(steps), max_size=5)):
        if step == "turn":
            new = draw(st.integers(1, 4))
            before = expected.held()
            tokens = [list(range(expected.seen, expected.seen + new))] * len(before)
            keys, _ = cache.update(as_keys(tokens), as_keys(tokens), 0)
            assert torch.equal(keys, as_keys([[*row, *tokens[0]] for row in before]))
            expected.add(new)
        elif step == "copy":
            other, cache = cache, copy.deepcopy(cache)
            other.update(as_keys([[99]] * len(expected.rows)), as_keys([[99]] * len(expected.rows)), 0)
        elif step == "rows":
            order = draw(
                st.lists(
                    st.integers(0, len(expected.rows) - 1), min_size=len(expected.rows), max_size=len(expected.rows)
                )
            )
            cache.reorder_cache(torch.tensor(order))
            expected.rows = [expected.rows[row] for row in order]
        elif step == "repeat" and len(expected.rows) < 4:
            cache.batch_repeat_interleave(2)
            expected.rows = [row for row in expected.rows for _ in range(2)]
        elif step == "crop":
            gone = draw(st.integers(1, expected.seen - 1))
            if expected.crop(gone):
                cache.crop(-gone)
            else:
                with pytest.raises(CacheError, match="crop would take"):
                    cache.crop(-gone)
        check(cache, expected, draw)


def test_a_layer_that_a_model_brings_keeps_its_place_in_transformers_table() -> None:
    """New caches are filled by a table of classes, into which each class that is derived from one puts itself."""

    class Own(DynamicLayer):  # as MiniMax-M3-VL's
        _layer_type = "own"

    table = getattr(cache_utils, "DYNAMIC_LAYER_TYPE_MAPPING", {})
    try:
        cache = DynamicCache()
        cache.layers = [Own()]
        cache.update(as_keys([[0, 2]]), as_keys([[0, 2]]), 0)
        mark_cut(cache, 4, torch.tensor([[0, 2]]))
        assert isinstance(cache.layers[0], CutLayer)
        assert isinstance(cache.layers[0], Own)
        assert table.get("own", Own) is Own
    finally:
        table.pop("own", None)
