"""Prefill and generate of whole models over ranks; functions here run in a crew's processes."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from typing import Any

import models
import torch
import torch._dynamo
from torch import Tensor

import segmo
from segmo.runtime.distributed import ops
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.session import session_of
from segmo.runtime.distributed.vision import encode_video
from segmo.runtime.partition.assignment import Piece
from segmo.runtime.partition.plan import Plan


def frames_of(case: dict[str, Any]) -> int | tuple[int, ...]:
    frames: int | tuple[int, ...] = case.get("frames", 9)
    return frames


def answer(rank: int, world: int, family: str, options: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens, the logits that gave them, and the length of the cache on this rank."""
    return answers(rank, world, family, options, [case])[0]


def answers(
    rank: int, world: int, family: str, options: dict[str, Any], cases: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """:func:`answer` for several prompts, one after the other through the same compiled model.

    A case holds ``frames``, ``seed``, ``tokens`` (new ones), and ``spread``: whether each rank encodes its own frames.
    """
    torch._dynamo.reset()
    model = models.build(family)
    segmo.compile(model, ranks="all", **options)
    return [_answer(model, family, world, case) for case in cases]


def _answer(model: Any, family: str, world: int, case: dict[str, Any]) -> dict[str, Any]:
    inputs = models.prompt(family, frames=frames_of(case), seed=case.get("seed", 0))
    if case.get("spread"):
        inputs = encode_video(model, inputs, spread=True)
    out = model.generate(
        **inputs,
        max_new_tokens=case.get("tokens", 4),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    report = segmo.last_report().to_dict()
    passes = {(graph["kind"], one["name"]): one["matches"] for graph in report["graphs"] for one in graph["passes"]}
    group = Ranks.of().group
    schedule = session_of(group.group_name).schedule if group is not None and world > 1 else None
    logits: Tensor = torch.stack(out.logits)
    return {
        "tokens": out.sequences,
        "logits": logits,
        "cache": out.past_key_values.layers[0].keys.shape[2],  # held, where get_seq_length counts what was seen
        "passes": passes,
        "notes": [note for graph in report["graphs"] for note in graph["notes"]],
        "kept": report["tokens"],
        "own": schedule.own if schedule is not None else None,
    }


def encode(rank: int, world: int, family: str, frames: int | tuple[int, ...]) -> dict[str, Any]:
    """The video's features as all ranks made them together, and how many frames this rank encoded."""
    model = models.build(family)
    seen = []
    tower = model.base_model.get_video_features

    def counting(**inputs: Any) -> Any:
        pixels, grid = inputs["pixel_values_videos"], inputs.get("video_grid_thw")
        seen.append(pixels.shape[1] if grid is None else int(grid[:, 0].sum()))
        return tower(**inputs)

    model.base_model.get_video_features = counting
    output = encode_video(model, models.prompt(family, frames=frames))["mm_encoder_outputs"]["video"]
    return {"pooled": output.pooler_output, "deep": getattr(output, "deepstack_features", None), "frames": seen}


def answer_differently(rank: int, world: int) -> None:
    """Each rank keeps another share of the tokens."""
    answer(rank, world, "qwen2_vl", {"keep": 0.5 + 0.25 * rank}, {})


def ops_of_prefill(rank: int, world: int, family: str, cache: str) -> tuple[dict[str, int], dict[str, int]]:
    """Op counts of the prefill graph before and after the segments were spread."""
    pipeline = f"select-tokens,segment-attention,inject-context,shard-segments{{cache={cache}}}"
    answer(rank, world, family, {"keep": 0.5, "pipeline": pipeline}, {"tokens": 1})
    for graph in segmo.last_report().graphs:
        for one in graph.passes:
            if graph.kind == "prefill" and one.name == "shard-segments":
                return one.ops_before, one.ops_after
    raise AssertionError("no prefill graph")


def answer_again(rank: int, world: int, family: str, options: dict[str, Any], dynamic: bool | None) -> list[Tensor]:
    """Two greedy tokens for each of two prompts of different length, through the same compiled model.

    With ``dynamic=False`` every step of decoding is a graph of its own.
    """
    torch._dynamo.reset()
    model = models.build(family)
    segmo.compile(model, dynamic=dynamic, ranks="all", **options)
    tokens = []
    for frames in (9, 14):
        inputs = models.prompt(family, frames=frames)
        tokens.append(model.generate(**inputs, max_new_tokens=2, do_sample=False))
    return tokens


def refuse(rank: int, world: int, what: str) -> str:
    """What is said to a prompt that cannot be spread over ranks, or what the report says of one that is not."""
    torch._dynamo.reset()
    model = models.build("qwen2_vl")
    inputs = models.prompt("qwen2_vl", frames=6, batch=2 if what == "batch" else 1)
    if what == "padding":
        inputs = models.left_padded(inputs)
    elif what == "no question":
        inputs = models.prompt("qwen2_vl", frames=6, question=0)
        tokens = ("input_ids", "attention_mask", "mm_token_type_ids")
        inputs = {name: value[:, :-3] if name in tokens else value for name, value in inputs.items()}
    options: dict[str, Any] = {"keep": 0.5, "segments": 2}
    if what == "attention scorer":
        options |= {"scorer": "attention", "layer": 1}
        inputs = encode_video(model, models.prompt("qwen2_vl", frames=6), spread=True)
    elif what == "no segments":
        options |= {"keep": 1.0, "segments": 1}
        inputs = encode_video(model, models.prompt("qwen2_vl", frames=6), spread=True)
    segmo.compile(model, ranks="all", **options)
    try:
        tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    except segmo.SegMoError as error:
        return f"{type(error).__name__}: {error}"
    segmo.uncompile(model)
    segmo.compile(model, **options)  # without ranks="all"
    assert torch.equal(tokens, model.generate(**inputs, max_new_tokens=2, do_sample=False))
    return "as one process"


def prefill_at_random(rank: int, world: int, seed: int, runs: int) -> list[Tensor]:
    """First tokens of prompts that are spread at random, with a random pause before each exchange."""
    torch._dynamo.reset()
    model = models.build("qwen2_vl")
    segmo.compile(model, **RANDOM_OPTIONS)
    pause = random.Random(f"{seed}/{rank}")
    enter, plan = Ranks._enter, ops.make_plan
    layouts = random.Random(seed)

    def late(self: Ranks, step: str) -> None:
        time.sleep(pause.choice([0, 0, 0.002]) * pause.random())
        enter(self, step)

    def anywhere(*arguments: Any) -> Plan:
        return random_plan(plan(*arguments), layouts)

    Ranks._enter, ops.make_plan = late, anywhere  # type: ignore[method-assign, assignment]
    try:
        return [first_token(model, case) for case in random_cases(seed, runs)]
    finally:
        Ranks._enter, ops.make_plan = enter, plan  # type: ignore[method-assign]


RANDOM_OPTIONS: dict[str, Any] = {"keep": 0.5, "segments": "scene", "ranks": "all"}


def random_cases(seed: int, runs: int) -> list[dict[str, Any]]:
    """Prompts of random length, encoded by all ranks together or by each rank."""
    draw = random.Random(f"cases {seed}")
    return [
        {"frames": draw.randint(2, 14), "seed": draw.randint(0, 9), "spread": draw.random() < 0.5} for _ in range(runs)
    ]


def first_token(model: Any, case: dict[str, Any]) -> Tensor:
    """Logits of the token after a prompt."""
    inputs = models.prompt("qwen2_vl", frames=case["frames"], seed=case["seed"])
    if case["spread"]:
        inputs = encode_video(model, inputs, spread=True)
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits: Tensor = out.logits[0]
    return logits


def random_plan(plan: Plan, draw: random.Random) -> Plan:
    """The same prefill, its segments cut and dealt out anyhow: not in order, not evenly, to some ranks nothing."""
    pieces: list[list[Piece]] = [[] for _ in range(plan.world)]
    for segment, tokens in enumerate(plan.workload.segments):
        cuts = sorted({0, tokens, *(draw.randint(0, tokens) for _ in range(draw.choice([0, 0, 1, 2])))})
        for start, end in itertools.pairwise(cuts):
            pieces[draw.randrange(plan.world)].append(Piece(segment, start, end))
    dealt = tuple(tuple(run) for run in pieces)
    return dataclasses.replace(plan, pieces=dealt, home=draw.randrange(plan.world), method="random")
