"""A memory over ranks: each keeps some of the segments, and all of them answer as one process does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ask_models import write_model
from crew import Crew, CrewError
from models import build, prompt
from rank_memory import filmed, watched

import segmo
from segmo.errors import OptionError, RankError


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 8, "place": "host", "layer": "each", "limit": 24_000, "longest": 3}],
    ids=["plain", "packed and thinned"],
)
def test_ranks_answer_as_one_process_does(crew: Crew, tmp_path: Path, options: dict[str, Any]) -> None:
    alone = watched(0, 1, tmp_path / "alone", {"layer": 1, **options})
    results = crew.run(watched, tmp_path / "spread", {"layer": 1, **options, "ranks": "all"})
    for found in results:
        for name in ("answers", "batch", "attended", "again"):
            assert found[name] == alone[name]
        assert found["summary"]["bytes"] < alone["summary"]["bytes"]
        assert found["share"] == pytest.approx(1)
    held = sum(found["summary"]["bytes"] for found in results)
    assert (
        alone["summary"]["bytes"] < held < 1.9 * alone["summary"]["bytes"]
    )  # text, features and the last segment twice
    model = build("qwen2_vl")
    back = segmo.Memory.load(model, tmp_path / "spread")
    assert back.ask(torch.tensor([21, 22]), max_new_tokens=3).tolist() == alone["again"]


def alone_in_a_group(rank: int, world: int) -> list[int]:
    """Without the option, a process is alone, whatever groups there are."""
    del world
    memory = segmo.watch(build("qwen2_vl"), None, prompt("qwen2_vl", frames=6 + rank), keep=0.4)
    answer: list[int] = memory.ask(torch.tensor([11]), max_new_tokens=2).tolist()
    return answer


def test_ranks_without_the_option_are_strangers(crew: Crew) -> None:
    first, second = crew.run(alone_in_a_group)
    assert first == alone_in_a_group(0, 1)
    assert second == alone_in_a_group(1, 1)


def test_a_camera_of_the_first_rank_is_watched_by_all(crew: Crew, tmp_path: Path) -> None:
    folder = write_model("qwen2_vl", tmp_path)
    alone = filmed(0, 1, folder, None)
    assert len(alone) == 3
    assert crew.run(filmed, folder, "all") == [alone, alone]
    with pytest.raises(CrewError) as failure:
        crew.run(filmed, folder, "all", True)
    errors = failure.value.errors
    assert isinstance(errors[0], OSError)
    assert isinstance(errors[1], RankError)
    assert "unplugged" in str(errors[1])


@pytest.mark.parametrize("options", [{"place": "disk", "folder": "x"}, {"place": {"device": 1, "host": None}}])
def test_what_does_not_go_over_ranks_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="over ranks"):
        segmo.watch(build("qwen2_vl"), None, prompt("qwen2_vl"), ranks="all", **options)


def asked_otherwise(rank: int, world: int, what: str) -> Any:
    """Each rank asks something else, or in another way, or watches another video."""
    del world
    inputs = prompt("qwen2_vl", frames=9 + 2 * (rank if what == "video" else 0))
    memory = segmo.watch(build("qwen2_vl"), None, inputs, keep=0.4, ranks="all")
    question = torch.tensor([11, 12 + (rank if what == "question" else 0)])
    return memory.ask(question, keep=0.5 - (0.2 * rank if what == "keep" else 0), max_new_tokens=2)


@pytest.mark.parametrize("what", ["question", "keep", "video"])
def test_ranks_that_make_other_calls_are_told(what: str) -> None:
    crew = Crew(2)
    try:
        with pytest.raises(CrewError) as caught:
            crew.run(asked_otherwise, what)
        for error in caught.value.errors.values():
            assert isinstance(error, RankError)
            assert "has another" in str(error)
    finally:
        crew.close()
