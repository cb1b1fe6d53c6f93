"""Ranks that differ are told apart before the first collective."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from crew import Crew, CrewError
from rank_cases import agree, hold_other_prompts, run_out_of_memory

from segmo.errors import RankError
from segmo.runtime.distributed.preflight import weights_fingerprint

SAME = {"torch": "2.14.1", "options": "keep=0.25", "weights": "abc"}


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


def test_equal_ranks_agree(crew):
    shared = crew.run(agree, "equal", [SAME, dict(SAME)], -1)
    assert shared == [[{"number": 0}, {"number": 1}]] * 2


@pytest.mark.parametrize("fact", SAME)
def test_a_difference_is_named(crew, fact):
    with pytest.raises(CrewError) as failure:
        crew.run(agree, f"differs-{fact}", [SAME, {**SAME, fact: "other"}], -1)
    assert set(failure.value.errors) == {0, 1}
    for error in failure.value.errors.values():
        assert isinstance(error, RankError)
        assert f"differ in {fact}" in str(error)
        assert "other" in str(error)


def test_a_silent_rank_is_named(crew):
    with pytest.raises(CrewError, match="rank 1 of 2 did not report") as failure:
        crew.run(agree, "silent", [SAME, SAME], 1)
    assert set(failure.value.errors) == {0}


def test_the_fingerprint_sees_values_shapes_and_dtypes():
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 30)
    first = weights_fingerprint(model)
    assert weights_fingerprint(model) == first
    assert weights_fingerprint(torch.nn.Linear(40, 30)) != first
    assert weights_fingerprint(model.to(torch.bfloat16)) != first


def test_other_prompts_are_told_apart(crew):
    with pytest.raises(CrewError, match="rank 1 holds another prompt than rank 0"):
        crew.run(hold_other_prompts)


def test_a_rank_out_of_memory_says_what_was_predicted(crew):
    with pytest.raises(CrewError) as failure:
        crew.run(run_out_of_memory)
    for rank, error in failure.value.errors.items():
        assert isinstance(error, RankError)
        assert f"rank {rank} of 2 ran out of memory: the plan had predicted" in str(error)
        assert "weights" in str(error)
