"""A process group changes nothing, unless the option ``ranks`` asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from crew import Crew, CrewError
from models import LAYERS, build, prompt
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import segmo
from segmo.errors import OptionError, RankError
from segmo.options import Options


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2, timeout_seconds=60)
    yield crew
    crew.close()


def generate(model: Any, seed: int) -> Any:
    torch._dynamo.reset()
    return model.generate(**prompt("qwen2_vl", seed=seed), max_new_tokens=2, do_sample=False)


def compiled(**options: Any) -> Any:
    return segmo.compile(build("qwen2_vl"), keep=0.5, segments=2, **options)


def matches() -> int:
    passes = segmo.last_report().to_dict()["graphs"][0]["passes"]
    return next(int(each["matches"]) for each in passes if each["name"] == "shard-segments")


def own_prompt(rank: int, world: int, wrapped: str) -> tuple[Any, int, list[str]]:
    """Each rank answers another prompt, as data parallel programs do; one of them twice."""
    model: Any = compiled()
    called = model
    if wrapped == "ddp":
        called = torch.nn.parallel.DistributedDataParallel(model)
        model = called.module
    if rank == 1:
        generate(model, 7)
    ids = generate(model, rank)
    with torch.no_grad():
        called(**prompt("qwen2_vl", seed=rank), logits_to_keep=1)
    codes = [miss.code for record in segmo.last_report().graphs[0].passes for miss in record.misses]
    return ids, matches(), codes


def one_prompt(rank: int, world: int, how: str) -> tuple[Any, int]:
    group: Any = {"all": "all", "group": dist.new_group([0, 1]), "mesh": init_device_mesh("cpu", (2,))}[how]
    model = torch.compile(build("qwen2_vl"), backend="segmo", options={"keep": 0.5, "segments": 2, "ranks": group})
    return generate(model, 0), matches()


def different_prompts(rank: int, world: int) -> None:
    generate(compiled(ranks="all"), rank)


def sharded_weights(rank: int, world: int) -> Any:
    """FSDP2: the weights of a layer are gathered while it runs, which breaks the graph at every layer."""
    model: Any = build("qwen2_vl")
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    segmo.compile(model, keep=0.5, segments=2)
    with pytest.warns(UserWarning, match="left a prefill graph as it was"):
        return generate(model, rank)


def no_group(rank: int, world: int) -> str:
    try:
        generate(compiled(ranks="no such group"), 0)
    except OptionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("wrapped", ["no", "ddp"])
def test_data_parallel_ranks_answer_prompts_of_their_own(crew: Crew, wrapped: str) -> None:
    for rank, (ids, spread, codes) in enumerate(crew.run(own_prompt, wrapped)):
        assert torch.equal(ids, generate(compiled(), rank))
        assert spread == 0
        assert "not-asked" in codes


@pytest.mark.parametrize("how", ["all", "group", "mesh"])
def test_asked_for_the_ranks_share_a_prompt(crew: Crew, how: str) -> None:
    expected = generate(compiled(), 0)
    for ids, spread in crew.run(one_prompt, how):
        assert torch.equal(ids, expected)
        assert spread == LAYERS


def test_prompts_of_their_own_with_ranks_are_an_error_that_names_the_option(crew: Crew) -> None:
    with pytest.raises(CrewError) as failure:
        crew.run(different_prompts)
    for error in failure.value.errors.values():
        assert isinstance(error, RankError)
        assert "option ranks" in str(error)


def test_sharded_weights_run_as_the_model_was_and_that_is_said(crew: Crew) -> None:
    for rank, ids in enumerate(crew.run(sharded_weights)):
        assert torch.equal(ids, generate(build("qwen2_vl"), rank))


def test_what_is_no_group_is_refused(crew: Crew) -> None:
    assert all("no process group of this process" in said for said in crew.run(no_group))
    with pytest.raises(OptionError, match=r'None, "all" or a process group'):
        Options(ranks=3)  # type: ignore[arg-type]
