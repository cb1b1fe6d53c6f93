"""The custom ops: schema, fakes and strides, by ``torch.library.opcheck``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.library import opcheck

import segmo.runtime.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.schedule import RowSchedule, pack

OPS: Any = torch.ops.segmo
FRAMES, CELLS, HIDDEN = 3, 4, 8
FRAME = torch.tensor([[SINK, *sorted([*range(FRAMES)] * CELLS), QUERY, QUERY]] * 2)
CELL = torch.tensor([[-1, *[*range(CELLS)] * FRAMES, -1, -1]] * 2)
LENGTH = FRAME.shape[1]
EMBEDS = torch.randn(2, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(0))
SCENE = FRAME.clamp(max=1)
INDEX = torch.tensor([[0, 1, 2, 9, 13, 14], [0, 3, 4, 5, 13, 14]])
ROWS = [RowSchedule(0, 1, (5, 13), 15, (1, 2)), RowSchedule(0, 1, (5, 13), 15, ())]
HEADS = torch.randn(2, 4, LENGTH, HIDDEN)
KEYS = torch.randn(2, 2, LENGTH, HIDDEN)

CASES = {
    "valid_tokens": (torch.ones(2, LENGTH, dtype=torch.long), None, FRAME),
    "read_prompt": ((CELL >= 0)[..., None], 24, [CELL]),
    "video_layout": (CELL >= 0, None, CELLS, 0),
    "scan_video": (EMBEDS, FRAME, CELL, None, "torch"),
    "scene_novelty": (EMBEDS, torch.rand(2, LENGTH), FRAME, CELL, SCENE, None, "torch"),
    "find_scenes": (torch.rand(2, LENGTH), FRAME, CELL, 8),
    "question_tokens": (FRAME + 3, FRAME, CELL, None, "special=1-2;blank=;header=;end=1"),
    "embedding_relevance": (EMBEDS, SCENE, CELL, FRAME == QUERY, 8),
    "attention_relevance": (HEADS, KEYS, SCENE, CELL, FRAME == QUERY, None, 0.3, 8, "torch"),
    "select_tokens": (torch.rand(2, LENGTH), FRAME, CELL, SCENE, torch.rand(2, 8), 24, 0.5, 0.5),
    "gather_tokens": (EMBEDS, INDEX, 1),
    "scatter_tokens": (EMBEDS[:, :6], INDEX, LENGTH, 1),
    "gather_rows": (torch.randn(24, HIDDEN), CELL >= 0, INDEX),
    "segment_ids": (FRAME, SCENE, "2"),
    "context_tokens": (FRAME, SCENE, SCENE, torch.rand(2, 8), 1, 1),
    "attention_schedule": (SCENE, None, None),
    "segment_attention": (HEADS, KEYS, KEYS, pack(ROWS), 0.3, "flash"),
}


@pytest.mark.parametrize("name", CASES)
def test_op_is_well_formed(name: str) -> None:
    tests = ("test_schema", "test_faketensor")
    opcheck(getattr(OPS, name).default, CASES[name], test_utils=tests)


def test_gather_and_scatter_are_inverse_and_fill_with_nan() -> None:
    back = OPS.scatter_tokens(OPS.gather_tokens(EMBEDS, INDEX, 1), INDEX, LENGTH, 1)
    kept = torch.zeros(2, LENGTH, dtype=torch.bool).scatter_(1, INDEX, True)
    assert torch.equal(back[kept], EMBEDS[kept])
    assert bool(back[~kept].isnan().all())


def test_a_row_that_all_share_is_gathered_for_each() -> None:
    shared = torch.randn(1, LENGTH, 3)
    out = OPS.gather_tokens(shared, INDEX, 1)
    assert torch.equal(out, torch.stack([shared[0, row] for row in INDEX]))
