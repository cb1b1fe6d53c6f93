"""Further families over ranks: as in one process where segments take every layer, and a named reason elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from crew import Crew
from rank_families import answer
from video_families import FAMILIES

from segmo.inspection.support import TESTED, families

SUPPORT = {row.family: row for row in families()}
SPREAD = [family for family in FAMILIES if SUPPORT[family].ranks == TESTED]
# Layers with a window, recurrent layers, and keys and values of two sizes need the whole prompt.
WHOLE = {"gemma4": "other-layers", "qwen3_5": "other-layers", "minicpmv4_6": "other-layers", "kimi_k25": "head-sizes"}
# With --exhaustive, all are tried.
SOME = ("qwen3_vl_moe", "llava_next_video", "gemma4")


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", [*SPREAD, *WHOLE])
def test_the_answer_is_that_of_one_process(crew: Crew, family: str, request: pytest.FixtureRequest) -> None:
    if family not in SOME and not request.config.getoption("--exhaustive"):
        pytest.skip("one family for each kind of merge is enough")
    alone = answer(0, 1, family, 9)
    for mine in crew.run(answer, family, 9):
        assert torch.equal(mine["tokens"], alone["tokens"])
        torch.testing.assert_close(mine["logits"], alone["logits"], rtol=1e-4, atol=1e-4)
        if family in WHOLE:
            assert mine["misses"]["shard-segments"] == [WHOLE[family]]
        else:
            assert mine["matches"]["shard-segments"] == alone["matches"]["segment-attention"]
