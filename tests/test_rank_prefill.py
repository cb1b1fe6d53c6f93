"""Whole models over ranks: the answer is that of one process, for every family, cache and number of ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import models
import pytest
import torch
from crew import Crew, CrewError
from rank_prefill import answer, answer_again, answer_differently, encode

from segmo.errors import RankError

PIPELINE = "select-tokens,segment-attention,inject-context,shard-segments{{cache={cache}}},lower-kernels"


@pytest.fixture(scope="module")
def crews() -> Iterator[Callable[[int], Crew]]:
    """Crews by number of ranks; one at a time, because each holds several processes with a model."""
    open_crews: dict[int, Crew] = {}

    def crew_of(ranks: int) -> Crew:
        if ranks not in open_crews:
            for old in open_crews.values():
                old.close()
            open_crews.clear()
            open_crews[ranks] = Crew(ranks, timeout_seconds=120)
        return open_crews[ranks]

    yield crew_of
    for crew in open_crews.values():
        crew.close()


# (ranks, cache, family, keep, segments): every family with and without CAS, both caches, 2 to 4 ranks.
CASES = [
    *((2, "gather", family, keep, 3) for family in models.FAMILIES for keep in (1.0, 0.5)),
    *((3, "sharded", family, keep, "scene") for family in models.FAMILIES for keep in (1.0, 0.5)),
    (4, "gather", "qwen3_vl", 0.5, 2),  # two segments for four ranks
    (4, "sharded", "qwen2_5_vl", 1.0, "scene"),
]


@functools.cache
def alone_answer(family: str, keep: float, segments: str | int) -> dict[str, Any]:
    """What one process answers."""
    return answer(0, 1, family, {"keep": keep, "segments": segments}, {"frames": 9})


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "cache", "family", "keep", "segments"), CASES)
def test_the_answer_is_that_of_one_process(crews, ranks, cache, family, keep, segments):
    alone = alone_answer(family, keep, segments)
    options = {"keep": keep, "segments": segments, "pipeline": PIPELINE.format(cache=cache)}
    results = crews(ranks).run(answer, family, options, {"frames": 9})
    for one in results:
        assert one["passes"]["prefill", "shard-segments"] == models.LAYERS
        assert torch.equal(one["tokens"], alone["tokens"])
        torch.testing.assert_close(one["logits"], alone["logits"], rtol=1e-4, atol=1e-5)
        assert torch.equal(one["logits"], results[0]["logits"])
    lengths = [one["cache"] for one in results]
    if cache == "gather":
        assert lengths == [alone["cache"]] * ranks
    else:
        assert min(lengths) < alone["cache"]


@pytest.mark.slow
@pytest.mark.parametrize(("dynamic", "cache"), [(True, "sharded"), (False, "gather")])
def test_a_second_prompt_of_another_length(crews, dynamic, cache):
    options = {"keep": 0.5, "segments": 3}
    alone = answer_again(0, 1, "qwen2_vl", options, dynamic)
    spread = {**options, "pipeline": PIPELINE.format(cache=cache)}
    for tokens in crews(2).run(answer_again, "qwen2_vl", spread, dynamic):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(tokens, alone, strict=True))


@pytest.mark.parametrize("family", models.FAMILIES)
def test_frames_are_encoded_once_and_features_are_whole(crews, family):
    frames = (2, 5) if family != "llava_onevision" else 7
    alone = encode(0, 1, family, frames)
    results = crews(4).run(encode, family, frames)
    assert sum(sum(one["frames"]) for one in results) == 7
    for one in results:
        torch.testing.assert_close(_flat(one["pooled"]), _flat(alone["pooled"]))
        for level, expected in zip(one["deep"] or [], alone["deep"] or [], strict=True):
            torch.testing.assert_close(_flat(level), _flat(expected))


def _flat(features) -> torch.Tensor:
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


@pytest.mark.slow
def test_ranks_with_different_options_are_told_apart(crews):
    with pytest.raises(CrewError) as failure:
        crews(2).run(answer_differently)
    for error in failure.value.errors.values():
        assert isinstance(error, RankError)
        assert "differ in options" in str(error)
