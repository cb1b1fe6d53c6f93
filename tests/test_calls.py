"""The ways in which people call a compiled model: by place, with gradients, in inference mode, in training mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build, prompt
from torch.fx import GraphModule

import segmo
from segmo.errors import CompileError, PromptError
from segmo.passes.base import Pass
from segmo.passes.pipeline import DEFAULT

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def compiled(**options: Any) -> Any:
    return segmo.compile(build("qwen2_vl"), **{"keep": 0.5, "segments": 2, **options})


def test_arguments_by_place_are_those_by_name() -> None:
    model, inputs = compiled(), prompt("qwen2_vl")
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    with torch.no_grad():
        by_name = model(input_ids=ids, attention_mask=mask, **inputs, logits_to_keep=1).logits
        by_place = model(ids, mask, **inputs, logits_to_keep=1).logits
        assert torch.equal(by_place, by_name)
        assert [graph.kind for graph in segmo.last_report().graphs] == ["prefill"]
        with pytest.raises(TypeError, match="input_ids given by place and by name"):
            model(ids, input_ids=ids, **inputs)


def test_inference_mode_gives_the_same() -> None:
    model, inputs = compiled(), prompt("qwen2_vl")
    with torch.no_grad():
        expected = model(**inputs, logits_to_keep=1).logits
    with torch.inference_mode():
        assert torch.equal(model(**inputs, logits_to_keep=1).logits, expected)


def test_features_that_a_caller_encoded_need_no_positions() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
    others = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    wanted = model(**inputs).logits
    segmo.compile(model, keep=1.0, segments=1)
    assert torch.allclose(model(**others, mm_encoder_outputs={"video": features}).logits, wanted, atol=1e-5)


def test_inductor_with_gradients_is_refused_in_words() -> None:
    model, inputs = compiled(lowering="inductor"), prompt("qwen2_vl")
    with pytest.raises(CompileError, match=r"torch\.no_grad\(\)"):
        model(**inputs, logits_to_keep=1)


def test_dropout_leaves_attention_as_it_is() -> None:
    model, inputs = compiled(keep=1.0), prompt("qwen2_vl")
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    model.train()
    with torch.no_grad(), pytest.warns(UserWarning, match=r"call model\.eval\(\)"):
        model(**inputs, logits_to_keep=1)


@pytest.mark.parametrize("jump", [-4, 3])
def test_packed_sequences_are_refused(jump: int) -> None:
    """transformers hides a row's sequences from each other where the text positions jump and there is no mask."""
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    del inputs["attention_mask"]
    length = inputs["input_ids"].shape[1]
    positions = torch.arange(length)[None]
    positions[:, length // 2 :] += jump
    segmo.compile(model, keep=0.5, segments=2)
    with torch.no_grad(), pytest.raises(PromptError, match="jump inside a row"):
        model(**inputs, position_ids=positions, logits_to_keep=1, use_cache=False)


def test_an_observer_sees_every_pass_before_and_after() -> None:
    seen: list[tuple[str, str, int]] = []

    def observer(moment: str, each: Pass, gm: GraphModule) -> None:
        seen.append((moment, each.name, len(gm.graph.nodes)))

    model, inputs = compiled(), prompt("qwen2_vl")
    with segmo.observe(observer), torch.no_grad():
        model(**inputs, logits_to_keep=1)
    assert [name for moment, name, _ in seen if moment == "after"] == DEFAULT.split(",")
    assert [moment for moment, _, _ in seen] == ["before", "after"] * len(DEFAULT.split(","))
    assert seen[0][2] != seen[1][2]
    count = len(seen)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled()(**inputs, logits_to_keep=1)
    assert len(seen) == count
