"""Prefill of any family's tiny model over ranks; the function here runs in a crew's processes."""

from __future__ import annotations

from typing import Any

import torch
from video_families import build, prompt

import segmo


def answer(rank: int, world: int, family: str, frames: int) -> dict[str, Any]:
    """Greedy tokens, the logits that gave them, and which passes changed the prefill."""
    torch._dynamo.reset()
    model = segmo.compile(build(family), keep=0.5, segments=3, ranks="all")
    with torch.no_grad():
        out = model.generate(
            **prompt(family, frames),
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    prefill = next(graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    return {
        "tokens": out.sequences,
        "logits": torch.stack(out.logits),
        "matches": {record.name: record.matches for record in prefill.passes},
        "misses": {record.name: [miss.code for miss in record.misses] for record in prefill.passes},
    }
