"""Attention over ranks on generated kernels, in Triton's interpreter: merges by logsumexp, and decode over a cache
that lies in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import models
import pytest
import torch
from crew import Crew
from interpreter import interpreting_children
from rank_cases import Case, attend, check_ops, decode
from rank_prefill import answer

from segmo.runtime.attention.reference import segment_attention
from segmo.runtime.schedule import RowSchedule, pack

PIPELINE = "select-tokens,segment-attention,inject-context,shard-segments{cache=sharded},lower-kernels"


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    pytest.importorskip("triton", reason="Triton ships with torch on Linux only")
    with interpreting_children():
        crew = Crew(2, fresh=True)
    yield crew
    crew.close()


def case(dtype: torch.dtype, heads: int = 6, home: int = 1) -> Case:
    """Three segments on two ranks; a segment goes on on the other rank, and there is context."""
    row = RowSchedule(0, 3, (20, 33, 51), 56, (4, 5, 40))
    return Case(row, (((3, 20), (20, 27)), ((27, 33), (33, 51))), home, heads, 2, 64, dtype, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merges_equal_the_reference(crew: Crew, dtype: torch.dtype) -> None:
    given = case(dtype)
    q, k, v = (x.double()[None] for x in given.whole())
    expected = segment_attention(q, k, v, pack([given.row]), given.scale)[0]
    for out, positions, *_ in crew.run(attend, given, 2, True):
        error = (out - expected[:, positions]).norm() / expected.norm()
        assert error < (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("new", [1, 3])
def test_decode_over_a_cache_in_pieces_equals_full_attention(crew: Crew, new: int) -> None:
    given = case(torch.float32)
    q, k, v = (x.double() for x in given.whole(new))
    mask = torch.ones(new, given.row.end + new, dtype=torch.bool).tril(given.row.end)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[None, :, -new:], k[None], v[None], attn_mask=mask, scale=given.scale, enable_gqa=True
    )[0]
    results = crew.run(decode, given, new, True)
    for out in results:
        assert (out - expected).norm() / expected.norm() < 1e-6
        assert torch.equal(out, results[0])


def test_operators_are_well_formed(crew: Crew) -> None:
    for found in crew.run(check_ops, case(torch.float32)):
        assert set(found.values()) == {"SUCCESS"}


def test_a_model_s_prefill_and_decode_run_on_generated_kernels(crew: Crew) -> None:
    options = {"keep": 0.5, "segments": 3}
    alone = answer(0, 1, "qwen2_vl", options, {"tokens": 3})
    spread = {**options, "pipeline": PIPELINE, "lowering": "triton"}
    for one in crew.run(answer, "qwen2_vl", spread, {"tokens": 3}):
        # Layers, the scan, and the selection with its gathers; in decode layers alone.
        assert one["passes"]["prefill", "lower-kernels"] > models.LAYERS + 1
        assert any(note.startswith("lower-kernels: rank_scan_video: triton@") for note in one["notes"])
        assert one["passes"]["decode", "lower-kernels"] == models.LAYERS
        assert torch.equal(one["tokens"], alone["tokens"])
        torch.testing.assert_close(one["logits"], alone["logits"], rtol=1e-4, atol=1e-5)
