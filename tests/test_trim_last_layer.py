"""The last layer narrowed to the last token: the same answer, a layer less of work, and never where rows are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import FAMILIES, LAYERS, build, left_padded, prompt

import segmo
from segmo.passes.runner import PassRecord

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

NAME = "trim-last-layer"
WAYS: dict[str, dict[str, Any]] = {
    "full": {"keep": 1.0, "segments": 1},
    "cas": {"keep": 0.5, "segments": 1},
    "lsp": {"keep": 1.0, "segments": 2, "context": 1},
    "both": {"keep": 0.5, "segments": 2},
    "late": {"keep": 0.5, "segments": 2, "scorer": "attention", "layer": LAYERS - 1},
}


def record() -> PassRecord:
    """What the pass did to the last prefill."""
    graph = next(graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    return next(record for record in graph.passes if record.name == NAME)


def prefilled(model: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]) -> Any:
    """Output of a prefill as ``generate`` runs it."""
    torch._dynamo.reset()
    segmo.compile(model, **options)
    with torch.no_grad():
        return model(**inputs, logits_to_keep=1, use_cache=True)


@pytest.mark.parametrize(
    ("family", "way"), [*((family, "both") for family in FAMILIES[1:]), *((FAMILIES[0], way) for way in WAYS)]
)
def test_answers_and_caches_stay_the_same(family: str, way: str) -> None:
    """In a batch with left padding, where the last row's mask matters."""
    model, inputs = build(family), left_padded(prompt(family, frames=9, batch=2))
    whole = prefilled(model, inputs, {**WAYS[way], "disable": NAME})
    trimmed = prefilled(model, inputs, WAYS[way])
    assert record().matches == 1
    torch.testing.assert_close(trimmed.logits, whole.logits, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(trimmed.past_key_values.layers, whole.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_a_prompt_that_ends_with_its_video_stays_in_its_segment() -> None:
    """The last row is then one of the video's, and must not see the other segments."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=9, question=0)
    inputs = {
        k: v[:, :-3] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v for k, v in inputs.items()
    }
    options = {"keep": 1.0, "segments": 3, "context": 0}
    whole = prefilled(model, inputs, {**options, "disable": NAME})
    trimmed = prefilled(model, inputs, options)
    torch.testing.assert_close(trimmed.logits, whole.logits, rtol=1e-4, atol=1e-4)


def matmul_flops(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """FLOPs of the matrix products of one prefill."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return sum(event.flops for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))


def test_one_mlp_less_is_computed() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=12)
    flops = {}
    for disable in ((), (NAME,)):
        torch._dynamo.reset()
        segmo.compile(model, keep=1.0, segments=1, disable=disable)
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        flops[disable] = matmul_flops(model, inputs)
    text = model.config.text_config
    rows = inputs["input_ids"].shape[1] - 1
    expected = 2 * rows * text.hidden_size * (text.hidden_size + 3 * text.intermediate_size)
    assert flops[(NAME,)] - flops[()] == expected


@pytest.mark.parametrize("asked", [{}, {"logits_to_keep": 3}, {"logits_to_keep": 1, "output_hidden_states": True}])
def test_rows_that_are_read_are_computed(asked: dict[str, Any]) -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    with torch.no_grad():
        eager = model(**inputs, **asked)
        segmo.compile(model, keep=1.0, segments=1)
        ours = model(**inputs, **asked)
    assert [miss.code for miss in record().misses] == ["every-row"]
    torch.testing.assert_close(ours.logits, eager.logits, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(ours.hidden_states or (), eager.hidden_states or (), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
