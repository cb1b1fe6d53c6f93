"""``generate`` in all its modes: each either gives what the contract says, or runs as it was and says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_reference import cut_logits
from models import FAMILIES, LAYERS, build, left_padded, prompt

import segmo
from segmo.errors import PromptError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def generate(model: Any, inputs: dict[str, torch.Tensor], **more: Any) -> Any:
    torch.manual_seed(0)
    given = {"max_new_tokens": 4, "do_sample": False, **more}
    return model.generate(**inputs, **given, return_dict_in_generate=True, output_logits=True)


REWRITES = ("select-tokens", "segment-attention", "inject-context", "lower-kernels")


def matches() -> list[int]:
    """Of the passes that say what is computed."""
    passes = segmo.last_report().to_dict()["graphs"][0]["passes"]
    return [each["matches"] for each in passes if each["name"] in REWRITES]


MODES = {
    "sampling": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 2},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_equal_eager_where_nothing_is_dropped(mode: str) -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=1)
    expected = generate(model, inputs, **MODES[mode])
    segmo.compile(model, keep=1.0)
    assert torch.equal(generate(model, inputs, **MODES[mode]).sequences, expected.sequences)
    assert matches()[1] == LAYERS


@pytest.mark.parametrize("mode", MODES)
def test_modes_drop_tokens(mode: str) -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl")
    segmo.compile(model, keep=0.5, segments=2)
    out = generate(model, inputs, **MODES[mode])
    assert matches() == [1, LAYERS, 1, LAYERS]
    assert out.sequences.shape[1] > inputs["input_ids"].shape[1]
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 12


@pytest.mark.families("qwen2_5_vl", "llava_onevision")
def test_left_padding_changes_nothing_for_the_other_rows(family: str) -> None:
    """Each row of a padded batch gives what it gives alone."""
    model, single = build(family), prompt(family, frames=6)
    batch = left_padded(prompt(family, frames=6, batch=2))
    segmo.compile(model, keep=0.5, segments=2)
    padded = generate(model, batch)
    assert matches() == [1, LAYERS, 1, LAYERS]
    alone = generate(model, single)
    torch.testing.assert_close(padded.logits[0][0], alone.logits[0][0], rtol=1e-4, atol=1e-4)
    assert torch.equal(padded.sequences[0, -4:], alone.sequences[0, -4:])


def test_left_padding_equals_eager_where_nothing_is_dropped() -> None:
    model, batch = build("qwen2_vl"), left_padded(prompt("qwen2_vl", frames=1, batch=2))
    expected = generate(model, batch)
    segmo.compile(model, keep=1.0)
    assert torch.equal(generate(model, batch).sequences, expected.sequences)
    assert matches()[1] == LAYERS


def test_a_static_cache_keeps_all_tokens_and_says_so() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    expected = generate(model, inputs, cache_implementation="static")
    segmo.compile(model, keep=0.5, segments=1)
    with pytest.warns(UserWarning, match=r"cache of fixed length .*DynamicCache"):
        out = generate(model, inputs, cache_implementation="static")
    assert torch.equal(out.sequences, expected.sequences)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_several_videos_and_images(family: str) -> None:
    model, inputs = build(family), prompt(family, frames=(5, 3), images=2)
    expected = generate(model, inputs)
    segmo.compile(model, keep=1.0, segments=1)
    assert torch.equal(generate(model, inputs).sequences, expected.sequences)
    torch._dynamo.reset()
    segmo.compile(model, keep=0.5)
    generate(model, inputs)
    assert matches() == [1, LAYERS, 1, LAYERS]
    if family == "qwen2_vl":  # Qwen3-VL's timestamps hide where one video ends and an equally large one begins
        scenes = segmo.last_report().to_dict()["scenes"]
        assert 5 in {scene["start_frame"] for scene in scenes}
    assert segmo.last_report().to_dict()["tokens"] == {
        "prompt": inputs["input_ids"].shape[1],
        "video": 32,
        "kept": 16,
    }


def test_a_batch_keeps_its_own_tokens_in_each_row() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=6, batch=2)
    other = prompt("qwen2_vl", frames=6, seed=9)
    rows = inputs["pixel_values_videos"].shape[0] // 2
    # One frame later, so that the second row's scenes start elsewhere.
    inputs["pixel_values_videos"][rows:] = other["pixel_values_videos"].roll(rows // 6, 0)
    segmo.compile(model, keep=0.25, segments=1)
    out = generate(model, inputs, max_new_tokens=1)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    assert prefill.index is not None
    assert not torch.equal(prefill.index[0], prefill.index[1])
    torch.testing.assert_close(out.logits[0], cut_logits(model, inputs, prefill), rtol=1e-4, atol=1e-4)


def test_scores_from_outside() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=6)
    segmo.compile(model, keep=0.25, scorer="external", balance=1.0, segments=1)
    with segmo.external_scores([0.0, 0.0, 0.0, 0.0, 0.0, 9.0]):
        generate(model, inputs)
    late = segmo.last_report().to_dict()["scenes"]
    with segmo.external_scores([9.0, 0.0, 0.0, 0.0, 0.0, 0.0]):
        generate(model, inputs)
    early = segmo.last_report().to_dict()["scenes"]
    assert late[-1]["kept"] > early[-1]["kept"]
    with pytest.raises(PromptError, match="external_scores"):
        generate(model, inputs)
    with segmo.external_scores([1.0] * 5), pytest.raises(PromptError, match="fit neither the 6 frames"):
        generate(model, inputs)


def test_features_with_nan_are_refused() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5)
    inputs["pixel_values_videos"][40] = torch.nan
    with pytest.raises(PromptError, match=r"NaN or infinity \(first in frame"):
        generate(model, inputs)


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_one_frame_no_question_and_more_segments_than_frames(family: str) -> None:
    model = build(family)
    segmo.compile(model, keep=0.5, segments=64)
    generate(model, prompt(family, frames=1))
    assert len(segmo.last_report().to_dict()["segments"]) == 1
    generate(model, prompt(family, frames=3, question=0))
    assert len(segmo.last_report().to_dict()["segments"]) <= 3


@pytest.mark.parametrize(("family", "layer"), [*((family, 1) for family in FAMILIES), ("qwen2_vl", 0), ("qwen2_vl", 2)])
def test_attention_scorer_cuts_at_its_layer(family: str, layer: int) -> None:
    """All caches are as short as the cut; layers before it see all tokens, so nothing is dropped from their values."""
    model, inputs = build(family), prompt(family, frames=6)
    length = inputs["input_ids"].shape[1]
    segmo.compile(model, keep=0.5, scorer="attention", layer=layer, segments=1, context=0)
    with torch.no_grad():
        out = model(**inputs, use_cache=True)
    tokens = segmo.last_report().to_dict()["tokens"]
    short = length - tokens["video"] + tokens["kept"]
    assert tokens["kept"] == tokens["video"] // 2
    assert [cache.keys.shape[2] for cache in out.past_key_values.layers] == [short] * LAYERS
    index = segmo.last_report().prefill.index  # type: ignore[union-attr]
    segmo.uncompile(model)
    with torch.no_grad():
        eager = model(**inputs, use_cache=True)
    for number in range(layer + 1):  # keys of the cut's own layer are computed from all tokens too
        expected = eager.past_key_values.layers[number].keys[:, :, index[0]]  # type: ignore[index]
        torch.testing.assert_close(out.past_key_values.layers[number].keys, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_that_does_not_exist_is_said() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5, scorer="attention", layer=7)
    with pytest.warns(UserWarning, match=r"layer=7, but the decoder's layers in this graph are 0 to 2"):
        generate(model, inputs)
