"""A process group changes nothing, unless the option ``ranks`` asks for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from crew import Crew, CrewError
from models import LAYERS, build, prompt
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from turns import ask, next_turn, words

import segmo
from segmo.calls import shards
from segmo.errors import CacheError, OptionError, RankError
from segmo.options import Options
from segmo.passes.pipeline import DEFAULT
from segmo.runtime.cache import SpreadLayer


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2, timeout_seconds=60)
    yield crew
    crew.close()


def generate(model: Any, seed: int) -> Any:
    torch._dynamo.reset()
    return model.generate(**prompt("qwen2_vl", seed=seed), max_new_tokens=1, do_sample=False)


def compiled(**options: Any) -> Any:
    return segmo.compile(build("qwen2_vl"), keep=0.5, segments=2, **options)


def matches() -> int:
    passes = segmo.last_report().to_dict()["graphs"][0]["passes"]
    return next(int(each["matches"]) for each in passes if each["name"] == "shard-segments")


def own_prompt(rank: int, world: int, wrapped: str) -> tuple[Any, int, list[str]]:
    """Each rank answers another prompt, as data parallel programs do; one of them twice."""
    model: Any = compiled()
    called = model
    if wrapped == "ddp":  # a bucket of gradients for each layer
        called = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.01)
        model = called.module
    if rank == 1:
        generate(model, 7)
    ids = generate(model, rank)
    with torch.no_grad():
        logits = called(**prompt("qwen2_vl", seed=rank), logits_to_keep=1).logits[0, -1]
    assert int(logits.argmax()) == int(ids[0, -1])
    assert all(graph.rewritten for graph in segmo.last_report().graphs if graph.kind != "decode")
    codes = [miss.code for record in segmo.last_report().graphs[0].passes for miss in record.misses]
    return ids, matches(), codes


def one_prompt(rank: int, world: int, how: str) -> tuple[Any, int]:
    group: Any = {"all": "all", "group": dist.new_group([0, 1]), "mesh": init_device_mesh("cpu", (2,))}[how]
    model = torch.compile(build("qwen2_vl"), backend="segmo", options={"keep": 0.5, "segments": 2, "ranks": group})
    return generate(model, 0), matches()


def different_prompts(rank: int, world: int) -> None:
    generate(compiled(ranks="all"), rank)


def sharded_weights(rank: int, world: int, how: str) -> Any:
    """FSDP2: weights are gathered around a call. Each rank has a prompt of its own."""
    model: Any = build("qwen2_vl")
    torch._dynamo.reset()
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    if how != "layers":  # generate calls the vision encoder by itself, which finds no weights then, SegMo or not
        fully_shard(model)
    segmo.compile(model, keep=0.5, segments=2)
    with torch.no_grad():
        out = model(**prompt("qwen2_vl", seed=rank), logits_to_keep=1)
        assert any(isinstance(parameter, DTensor) for parameter in model.parameters())  # sharded again
        ids = generate(model, rank) if how == "layers" else None
    assert all(graph.rewritten for graph in segmo.last_report().graphs if graph.kind == "prefill")
    return out.logits[:, -1], out.past_key_values.layers[0].keys.shape[2], ids


def too_large(rank: int, world: int) -> Any:
    model: Any = build("qwen2_vl")
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    segmo.compile(model, keep=0.5)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:  # one of them is enough
            patch.setattr(shards, "free_bytes", lambda device: 1000)
        with pytest.warns(UserWarning, match=r"fully_shard.* GiB that are free.*option ranks"):
            return generate(model, rank)


def answers_that_go_on(model: Any) -> tuple[list[Any], Any]:
    """A prompt's answer, another prompt's, and the first one's continued token by token; and the first one's cache."""
    inputs = prompt("qwen2_vl", frames=9)
    first, other = ask(model, inputs), ask(model, prompt("qwen2_vl", frames=4, seed=1))
    on = ask(model, next_turn(inputs, first.sequences, words(0)), past_key_values=first.past_key_values)
    parts = [(each.sequences, torch.stack(each.logits)) for each in (first, other, on)]
    return parts, first.past_key_values


def spread_cache(rank: int, world: int) -> tuple[list[Any], int, int]:
    """The keys stay on the ranks that made them. What a rank cannot do alone is refused before anybody waits."""
    torch._dynamo.reset()
    pipeline = DEFAULT.replace("shard-segments", "shard-segments{cache=sharded}")
    model = compiled(ranks="all", pipeline=pipeline)
    parts, cache = answers_that_go_on(model)
    assert all(isinstance(layer, SpreadLayer) for layer in cache.layers)
    seen, held, sequences = cache.get_seq_length(), cache.layers[0].held, parts[-1][0]
    turn = next_turn(prompt("qwen2_vl", frames=9), sequences, words(5))
    for said, call in (
        ("6 tokens came at once", lambda: ask(model, turn, past_key_values=cache)),
        ("2 tokens came at once", lambda: model(input_ids=words(2), past_key_values=cache)),
        ("tokens should be taken off", lambda: cache.crop(-1)),
        ("tokens should be taken off", lambda: cache.crop(seen - 1)),
        ("an attention mask came", lambda: model(**hidden_token(seen), past_key_values=cache)),
        ("positions of all keys", lambda: cache.layers[0].positions),
        ("2 answers were asked for", lambda: cache.batch_repeat_interleave(2)),
        ("put in another order", lambda: cache.reorder_cache(torch.tensor([0, 0]))),
        ("not compiled for", lambda: build("qwen2_vl")(input_ids=words(1), past_key_values=copy.deepcopy(cache))),
        ("not compiled for", lambda: compiled(ranks="all")(input_ids=words(1), past_key_values=copy.deepcopy(cache))),
    ):
        with torch.no_grad(), pytest.raises(CacheError, match=rf"spread over the ranks.*{said}.*cache=.gather"):
            call()
    cache.crop(seen)  # nothing to take off
    assert (cache.get_seq_length(), cache.layers[0].held) == (seen, held)
    return parts, seen, held


def hidden_token(seen: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(1, seen + 1, dtype=torch.long)
    mask[:, 3] = 0
    return {"input_ids": words(1), "attention_mask": mask}


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


@pytest.mark.parametrize("how", ["layers", "layers and model"])
def test_sharded_weights_are_gathered_for_a_call(crew: Crew, how: str) -> None:
    model = compiled()
    for rank, (logits, held, ids) in enumerate(crew.run(sharded_weights, how)):
        with torch.no_grad():
            out = model(**prompt("qwen2_vl", seed=rank), logits_to_keep=1)
        torch.testing.assert_close(logits, out.logits[:, -1], rtol=1e-4, atol=1e-5)
        assert held == out.past_key_values.layers[0].keys.shape[2]
        assert ids is None or torch.equal(ids, generate(model, rank))


def test_sharded_weights_without_room_run_as_the_model_was_and_that_is_said(crew: Crew) -> None:
    for rank, ids in enumerate(crew.run(too_large)):
        assert torch.equal(ids, generate(build("qwen2_vl"), rank))


def test_a_cache_spread_over_ranks_goes_on_token_by_token_and_refuses_the_rest(crew: Crew) -> None:
    expected, cache = answers_that_go_on(compiled())
    found = crew.run(spread_cache)
    for parts, seen, _ in found:
        assert seen == cache.get_seq_length()
        for (ids, logits), (wanted_ids, wanted) in zip(parts, expected, strict=True):
            assert torch.equal(ids, wanted_ids)
            torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=2e-5)
    assert min(held for _, _, held in found) < cache.layers[0].held


def test_what_is_no_group_is_refused(crew: Crew) -> None:
    assert all("no process group of this process" in said for said in crew.run(no_group))
    with pytest.raises(OptionError, match=r'None, "all" or a process group'):
        Options(ranks=3)  # type: ignore[arg-type]
