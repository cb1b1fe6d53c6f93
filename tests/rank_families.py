"""Prefill of any family's tiny model over ranks; the function here runs in a crew's processes."""

from __future__ import annotations

from typing import Any

import torch
from kept_tokens import cached
from video_families import build, prompt

import segmo
from segmo.passes.pipeline import DEFAULT


def answer(rank: int, world: int, family: str, keep: float, rounds: int, pipeline: str = DEFAULT) -> dict[str, Any]:
    """Greedy tokens, the logits that gave them, what the cache holds, and which passes changed the prefill."""
    torch._dynamo.reset()
    options: dict[str, Any] = {"keep": keep, "segments": 3, "ranks": "all", "pipeline": pipeline}
    model = segmo.compile(build(family, rounds=rounds), **options)
    with torch.no_grad():
        out = model.generate(
            **prompt(family, 9),
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    prefill = next(graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    return {
        "tokens": out.sequences,
        "logits": torch.stack(out.logits),
        "cache": cached(out.past_key_values),
        "matches": {record.name: record.matches for record in prefill.passes},
        "misses": {record.name: [miss.code for miss in record.misses] for record in prefill.passes},
    }
