"""The identities that always hold, on whole models: what SegMo's graph gives equals the contract run eagerly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_reference import cut_logits, masked_attention, prefill_masks
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from models import FAMILIES, LAYERS, build, prompt

import segmo

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int = 6, **more: Any) -> Any:
    """Greedy ids and logits of each step."""
    return model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True, **more
    )


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||."""
    return float((out.float() - reference.float()).norm() / reference.float().norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_kept_and_one_segment_is_the_model(family: str) -> None:
    model, inputs = build(family), prompt(family)
    eager = generate(model, inputs)
    segmo.compile(model, keep=1.0, segments=1)
    compiled = generate(model, inputs)
    assert torch.equal(compiled.sequences, eager.sequences)
    assert error(compiled.logits[0], eager.logits[0]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_one_scene_through_segment_attention_is_the_model(family: str) -> None:
    """The rewritten path itself, where the only segment there is holds everything."""
    model, inputs = build(family), prompt(family, frames=1)
    eager = generate(model, inputs)
    segmo.compile(model, keep=1.0, segments="scene")
    compiled = generate(model, inputs)
    assert len(segmo.last_report().to_dict()["segments"]) == 1
    assert torch.equal(compiled.sequences, eager.sequences)
    assert error(compiled.logits[0], eager.logits[0]) < 1e-5


@pytest.mark.parametrize("lowering", ["flash", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_equal_the_dense_mask_run_eagerly(family: str, lowering: str) -> None:
    model, inputs = build(family), prompt(family, frames=9, batch=2)
    segmo.compile(model, keep=1.0, segments=3, lowering=lowering)
    compiled = generate(model, inputs)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    assert prefill.segment is not None
    assert int(prefill.segment.max()) == 2
    segmo.uncompile(model)
    with masked_attention(model, prefill_masks(prefill, LAYERS)):
        eager = generate(model, inputs)
    assert torch.equal(compiled.sequences, eager.sequences)
    assert error(compiled.logits[0], eager.logits[0]) < 1e-5


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_all_context_is_full_attention(family: str) -> None:
    """Every scene's head frame is its only frame, so all video tokens are context."""
    model, inputs = build(family), prompt(family, frames=2)
    eager = generate(model, inputs)
    segmo.compile(model, keep=1.0, segments="equal:2", context=128)
    compiled = generate(model, inputs)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    if prefill.relevance is not None and len(segmo.last_report().to_dict()["scenes"]) == 2:
        assert error(compiled.logits[0], eager.logits[0]) < 1e-5
        assert torch.equal(compiled.sequences, eager.sequences)


@pytest.mark.parametrize(
    ("family", "dynamic"), [*((family, None) for family in FAMILIES), ("qwen2_vl", True), ("qwen2_vl", False)]
)
def test_cut_equals_the_decoder_on_the_kept_tokens(family: str, dynamic: bool | None) -> None:
    """Selection before layer 0, with segments and context, against the decoder run eagerly on those tokens."""
    model = build(family)
    segmo.compile(model, dynamic=dynamic, keep=0.5, segments=2, context=1)
    for frames in (6, 8):  # with dynamic=None the second length is the dynamic graph
        inputs = prompt(family, frames=frames, batch=2, seed=frames)
        compiled = generate(model, inputs, tokens=1)
        prefill = segmo.last_report().prefill
        assert prefill is not None
        assert segmo.last_report().to_dict()["tokens"]["kept"] == segmo.last_report().to_dict()["tokens"]["video"] // 2
        expected = cut_logits(model, inputs, prefill)
        assert error(compiled.logits[0], expected) < 1e-5


# Each example compiles a model, so a failure is reported as it is and not shrunk for minutes.
@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(
    family=st.sampled_from(FAMILIES),
    keep=st.sampled_from([0.06, 0.25, 0.5, 0.77, 0.99]),
    segments=st.sampled_from(["scene", 1, 2, 5, "equal:3"]),
    context=st.integers(0, 3),
    tails=st.integers(0, 2),
    frames=st.integers(2, 9),
    seed=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_cut_equals_the_decoder_on_the_kept_tokens(
    family: str,
    keep: float,
    segments: str | int,
    context: int,
    tails: int,
    frames: int,
    seed: int,
    dtype: torch.dtype,
) -> None:
    torch._dynamo.reset()
    model, inputs = build(family, dtype), prompt(family, frames=frames, seed=seed)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(dtype)
    segmo.compile(model, keep=keep, segments=segments, context=context, tails=tails)
    compiled = generate(model, inputs, tokens=1)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    tokens = segmo.last_report().to_dict()["tokens"]
    assert tokens["kept"] == int(keep * tokens["video"])
    expected = cut_logits(model, inputs, prefill)
    assert error(compiled.logits[0], expected) < (1e-5 if dtype == torch.float32 else 3e-2)
