"""Prefill and generate of whole models over ranks; functions here run in a crew's processes."""

from __future__ import annotations

from typing import Any

import models
import torch
import torch._dynamo
from torch import Tensor

import segmo
from segmo.runtime.distributed.vision import encode_video


def frames_of(case: dict[str, Any]) -> int | tuple[int, ...]:
    frames: int | tuple[int, ...] = case.get("frames", 9)
    return frames


def answer(rank: int, world: int, family: str, options: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens, the logits that gave them, and the length of the cache on this rank."""
    torch._dynamo.reset()
    model = models.build(family)
    inputs = models.prompt(family, frames=frames_of(case), seed=case.get("seed", 0))
    segmo.compile(model, **options)
    out = model.generate(
        **inputs,
        max_new_tokens=case.get("tokens", 6),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    report = segmo.last_report().to_dict()
    passes = {(graph["kind"], one["name"]): one["matches"] for graph in report["graphs"] for one in graph["passes"]}
    logits: Tensor = torch.stack(out.logits)
    return {
        "tokens": out.sequences,
        "logits": logits,
        "cache": out.past_key_values.get_seq_length(),
        "passes": passes,
        "kept": report["tokens"],
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
    """Greedy tokens for two prompts of different length, one after the other through the same compiled model."""
    torch._dynamo.reset()
    model = models.build(family)
    segmo.compile(model, dynamic=dynamic, **options)
    tokens = []
    for frames in (9, 14):
        inputs = models.prompt(family, frames=frames)
        tokens.append(model.generate(**inputs, max_new_tokens=4, do_sample=False))
    return tokens
