"""Further families over ranks: logits, cache and decode are those of one process, whatever layers there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rank_mixers
import torch
from crew import Crew
from rank_families import answer
from video_families import FAMILIES

from segmo.inspection.support import TESTED, families
from segmo.passes.pipeline import DEFAULT

SUPPORT = {row.family: row for row in families()}
SPREAD = [family for family in FAMILIES if SUPPORT[family].ranks == TESTED]
SHARDED = DEFAULT.replace("shard-segments", "shard-segments{cache=sharded}")
# With --exhaustive, all are tried: experts; layers with a window, and recurrent ones, before and behind others.
SOME = (("qwen3_vl_moe", "gather"), ("gemma4", "sharded"), ("qwen3_5", "gather"))
TWICE = ("qwen3_5", "exaone4_5")  # whose layers may be repeated
# The index of their sparse layers takes position ids for places, so that no token can be dropped.
NO_CUT = ("minimax_m3_vl",)
# Whose cache cannot stay where it was made, and why.
ONLY_GATHERED = {"minimax_m3_vl": "whole-cache"}


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["gather", "sharded"])
@pytest.mark.parametrize("family", SPREAD)
def test_the_answer_is_that_of_one_process(crew: Crew, family: str, cache: str, request: pytest.FixtureRequest) -> None:
    if (family, cache) not in SOME and not request.config.getoption("--exhaustive"):
        pytest.skip("one family for each kind of merge and layer is enough")
    keep, rounds = 1.0 if family in NO_CUT else 0.5, 1 + (family in TWICE)
    alone = answer(0, 1, family, keep, rounds)
    for mine in crew.run(answer, family, keep, rounds, SHARDED if cache == "sharded" else DEFAULT):
        assert torch.equal(mine["tokens"], alone["tokens"])
        torch.testing.assert_close(mine["logits"], alone["logits"], rtol=1e-4, atol=1e-4)
        if cache == "sharded" and family in ONLY_GATHERED:
            assert mine["misses"]["shard-segments"] == [ONLY_GATHERED[family]]
            continue
        assert mine["matches"]["shard-segments"] == alone["matches"]["segment-attention"] > 0
        assert mine["matches"]["trim-last-layer"] == alone["matches"]["trim-last-layer"]
        assert mine["cache"].keys() == alone["cache"].keys()
        for name, value in mine["cache"].items():
            if cache == "gather":
                torch.testing.assert_close(value, alone["cache"][name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", rank_mixers.MIXERS)
def test_a_layer_that_nobody_knows_gets_the_tokens_it_needs(
    crew: Crew, mixer: str, request: pytest.FixtureRequest
) -> None:
    """Compared with one process, whose prefill is that of the model's own code with a dense mask elsewhere."""
    if mixer not in rank_mixers.SOME and not request.config.getoption("--exhaustive"):
        pytest.skip("a few of them are enough")
    alone = rank_mixers.answer(0, 1, mixer)
    for mine in crew.run(rank_mixers.answer, mixer):
        assert mine["spread"] == rank_mixers.LAYERS
        assert mine["received"] >= mine["joined"] > 0
        torch.testing.assert_close(mine["logits"], alone["logits"], rtol=1e-4, atol=1e-4)
        for name, value in mine["cache"].items():
            torch.testing.assert_close(value, alone["cache"][name], rtol=1e-4, atol=1e-4, msg=name)
