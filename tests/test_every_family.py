"""What the contract promises, on every Video LLM family of transformers: tiny random models, whole prefills."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_reference import dense_mask
from kept_tokens import cached, dense_attention, full_layers, kept_tokens_only
from video_families import FAMILIES, build, prompt

import segmo

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# Families whose code decides in Python by what tensors hold, so that Dynamo breaks it into several graphs and the video
# enters in another one than the decoder: ERNIE asks in every mixture of experts whether there is any vision token, and
# Qwen4's indexer loops over the tokens. They run as they are, with a warning.
AS_IT_IS = ("qwen4_exp",)
CUT = [family for family in FAMILIES if family not in AS_IT_IS]
# Where no layer can be cut into segments, and why: their masks hold more than causality.
NO_SEGMENTS = {
    "dots3_note": "foreign-mask",  # an index picks the keys of each query
    "glm5_next": "foreign-mask",
    "minimax_m3_vl": "foreign-mask",
    "molmo2": "foreign-mask",  # frame tokens see each other both ways
    "gemma4_unified": "foreign-mask",
}
# One family for each kind of decoder; with --exhaustive, segments are tried on all.
KINDS = (
    "qwen3_vl_moe", "qwen3_5", "gemma4", "lfm3_vl", "kimi_k25", "nemotron_h_omni", "llava_next_video", "gemma4_unified",
)  # fmt: skip


def compiled_prefill(model: Any, **options: Any) -> Any:
    """Compiles a model for prompts, and lets it decode as it is: what a decode graph is, other tests show."""
    segmo.compile(model, **options)
    compiled = model._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        decodes = kwargs["input_ids"] is not None and kwargs["input_ids"].shape[1] == 1
        return model._call_impl(*args, **kwargs) if decodes else compiled(*args, **kwargs)

    model._compiled_call_impl = call
    return model


def generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int) -> Any:
    with torch.no_grad():
        return model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||."""
    return float((out.float() - reference.float()).norm() / reference.float().norm().clamp(min=1e-12))


def matches(name: str) -> int:
    graphs = segmo.last_report().to_dict()["graphs"]
    return sum(each["matches"] for graph in graphs for each in graph["passes"] if each["name"] == name)


@pytest.mark.parametrize("family", CUT)
def test_everything_kept_and_one_segment_is_the_model(family: str) -> None:
    model, inputs = build(family), prompt(family)
    eager = generate(model, inputs, 4)
    compiled = generate(compiled_prefill(model, keep=1.0, segments=1), inputs, 4)
    assert torch.equal(compiled.sequences, eager.sequences)
    assert error(compiled.logits[0], eager.logits[0]) < 1e-4


@pytest.mark.parametrize("family", CUT)
def test_the_cut_is_the_decoder_on_the_kept_tokens(family: str) -> None:
    """Logits and caches, for two lengths of video in one compilation, and decoding goes on from there."""
    model = build(family)
    compiled_prefill(model, keep=0.25, segments=1)
    held = []
    for frames in (6, 9):
        inputs = prompt(family, frames, seed=frames)
        out = generate(model, inputs, 1)
        report = segmo.last_report()
        tokens = report.to_dict()["tokens"]
        assert matches("select-tokens") == 1
        assert tokens["kept"] == int(0.25 * tokens["video"])
        assert report.prefill is not None
        assert report.prefill.index is not None
        held.append((inputs, out, report.prefill.index[0], report.prefill.cell[0] >= 0))
    assert [graph.kind for graph in report.graphs].count("prefill") == 1
    longer = generate(model, inputs, 3)
    assert torch.isfinite(torch.stack(longer.logits)).all()
    segmo.uncompile(model)
    for inputs, out, index, video in held:
        with kept_tokens_only(model, index, video):
            expected = generate(model, inputs, 1)
        assert error(out.logits[0], expected.logits[0]) < 1e-4
        ours, theirs = cached(out.past_key_values), cached(expected.past_key_values)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.shape == theirs[name].shape, name
            assert error(value, theirs[name]) < 1e-4, name


@pytest.mark.parametrize("family", CUT)
def test_segments_are_the_dense_mask(family: str, request: pytest.FixtureRequest) -> None:
    """In the layers with full attention; local and recurrent layers run as they are."""
    if family not in KINDS and not request.config.getoption("--exhaustive"):
        pytest.skip("one family for each kind of decoder is enough")
    model, inputs = build(family), prompt(family, 9)
    out = generate(compiled_prefill(model, keep=1.0, segments=3), inputs, 1)
    report = segmo.last_report()
    if family in NO_SEGMENTS:
        misses = [miss.code for record in report.graphs[0].passes for miss in record.misses]
        assert NO_SEGMENTS[family] in misses
        assert matches("segment-attention") == 0
        return
    assert matches("segment-attention") == len(full_layers(model))
    prefill = report.prefill
    assert prefill is not None
    assert prefill.segment is not None
    if int(prefill.frame.max()) > 0:  # a video of several frames has several segments
        assert int(prefill.segment.max()) == 2
    segmo.uncompile(model)
    context = None if prefill.context is None else prefill.context[0]
    with dense_attention(model, dense_mask(prefill.segment[0], context)):
        expected = generate(model, inputs, 1)
    assert error(out.logits[0], expected.logits[0]) < 1e-4


@pytest.mark.parametrize("family", AS_IT_IS)
def test_what_does_not_apply_runs_as_it_was_and_says_so(family: str, request: pytest.FixtureRequest) -> None:
    if family == "qwen4_exp" and not request.config.getoption("--exhaustive"):
        pytest.skip("its many graphs take minutes to compile")
    model, inputs = build(family), prompt(family, 2)
    eager = generate(model, inputs, 3)
    compiled_prefill(model, keep=0.25)
    with pytest.warns(UserWarning, match="SegMo left a prefill"):
        out = generate(model, inputs, 3)
    assert torch.equal(out.sequences, eager.sequences)
