"""Whole models over ranks: the answer is that of one process, for every family, cache and number of ranks."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import models
import pytest
import torch
from crew import Crew, CrewError
from rank_prefill import (
    RANDOM_OPTIONS,
    answer_again,
    answer_differently,
    answers,
    encode,
    first_token,
    prefill_at_random,
    random_cases,
    refuse,
)

import segmo
from segmo.errors import RankError
from segmo.passes.pipeline import DEFAULT

PIPELINE = DEFAULT.replace("shard-segments", "shard-segments{{cache={cache}}}").replace(
    "tile-rows",
    "tile-rows{{rows=8}}",
)


@pytest.fixture(scope="module")
def crews() -> Iterator[Callable[[int], Crew]]:
    """Crews by number of ranks; one at a time, because each holds several processes with a model."""
    open_crews: dict[int, Crew] = {}

    def crew_of(ranks: int) -> Crew:
        if ranks not in open_crews:
            for old in open_crews.values():
                old.close()
            open_crews.clear()
            open_crews[ranks] = Crew(ranks)
        return open_crews[ranks]

    yield crew_of
    for crew in open_crews.values():
        crew.close()


GRID = [
    (ranks, family, cache, keep)
    for ranks in (2, 3, 4)
    for family in models.FAMILIES
    for cache in ("gather", "sharded")
    for keep in (1.0, 0.5)
]
# By default every family with both caches, with and without CAS in turn, on two ranks once and on three or four once.
CASES = [
    (2, "qwen2_vl", "gather", 0.5),
    (2, "qwen2_5_vl", "sharded", 1.0),
    (2, "qwen3_vl", "gather", 1.0),
    (2, "llava_onevision", "sharded", 0.5),
    (3, "qwen2_vl", "sharded", 1.0),
    (3, "qwen3_vl", "sharded", 0.5),
    (4, "qwen2_5_vl", "gather", 0.5),
    (4, "llava_onevision", "gather", 1.0),
]

# Scenes of unequal length; one scene alone, so that its tokens may all be on one rank; each rank encoding its share.
PROMPTS = [
    {"frames": 10, "seed": 1},
    {"frames": 3, "seed": 2},
    {"frames": 11, "seed": 3, "spread": True},
    {"frames": 2, "seed": 4, "spread": True},
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``--exhaustive`` runs the whole grid."""
    if {"ranks", "cache", "family", "keep"} <= set(metafunc.fixturenames):
        cases = GRID if metafunc.config.getoption("--exhaustive") else CASES
        metafunc.parametrize(("ranks", "family", "cache", "keep"), cases)


@functools.cache
def alone_answers(family: str, keep: float) -> list[dict[str, Any]]:
    """What one process answers."""
    return answers(0, 1, family, {"keep": keep}, PROMPTS)


def _flat(features) -> torch.Tensor:
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("padding", "PromptError: padding on the left: .*call the model once per prompt"),
        ("batch", "as one process"),
        ("no question", "PromptError: the prompt ends in its video; over ranks text has to follow"),
        ("attention scorer", "PromptError: .*every rank computes the first layers.*without spread=True"),
        ("no segments", "PromptError: .*shard-segments did not apply.*without spread=True"),
    ],
)
def test_what_cannot_be_spread_is_refused_or_runs_whole_on_every_rank(crews, what, said):
    for words in crews(2).run(refuse, what):
        assert re.match(said, words, re.DOTALL)


@pytest.mark.slow
def test_a_second_prompt_of_another_length_in_graphs_for_one_length(crews):
    options = {"keep": 0.5, "segments": 3}
    alone = answer_again(0, 1, "qwen2_vl", options, False)
    for tokens in crews(2).run(answer_again, "qwen2_vl", options, False):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(tokens, alone, strict=True))


@pytest.mark.slow
def test_the_answer_is_that_of_one_process(crews, ranks, cache, family, keep):
    alone = alone_answers(family, keep)
    # Whole scenes with one cache: then one scene leaves all ranks but one without a segment.
    fields = cache if cache == "gather" else f"{cache}, split=False"
    options = {"keep": keep, "pipeline": PIPELINE.format(cache=fields)}
    results = crews(ranks).run(answers, family, options, PROMPTS)
    for case, expected in enumerate(alone):
        everyone = [one[case] for one in results]
        for one in everyone:
            assert one["passes"]["prefill", "shard-segments"] == models.LAYERS
            assert one["passes"]["prefill", "trim-last-layer"] == 1
            assert one["passes"]["prefill", "tile-rows"] > 0
            assert torch.equal(one["tokens"], expected["tokens"])
            torch.testing.assert_close(one["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
            assert torch.equal(one["logits"], everyone[0]["logits"])
        lengths = [one["cache"] for one in everyone]
        if cache == "gather":
            assert lengths == [expected["cache"]] * ranks
        else:
            assert min(lengths) < expected["cache"]
    if cache == "sharded":
        assert min(one[-1]["own"] for one in results) == 0


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


@pytest.mark.slow
def test_no_deadlock_whatever_the_layout_and_the_delays(crews, request):
    runs, seed = 200 if request.config.getoption("--exhaustive") else 20, 5
    model = models.build("qwen2_vl")
    segmo.compile(model, **RANDOM_OPTIONS)
    results = crews(4).run(prefill_at_random, seed, runs)
    for case, *everyone in zip(random_cases(seed, runs), *results, strict=True):
        expected = first_token(model, case)
        for mine in everyone:
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(mine, everyone[0])


@pytest.mark.slow
def test_a_group_of_one_rank_is_a_process_alone(crews):
    (one,) = crews(1).run(answers, "qwen3_vl", {"keep": 0.5}, PROMPTS)
    for mine, expected in zip(one, alone_answers("qwen3_vl", 0.5), strict=True):
        assert torch.equal(mine["tokens"], expected["tokens"])
        assert torch.equal(mine["logits"], expected["logits"])


@pytest.mark.slow
def test_ranks_with_different_options_are_told_apart(crews):
    with pytest.raises(CrewError) as failure:
        crews(2).run(answer_differently)
    for error in failure.value.errors.values():
        assert isinstance(error, RankError)
        assert "differ in options" in str(error)
