"""What the contract promises, on every Video LLM family of transformers: tiny random models, whole prefills."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_reference import dense_mask
from kept_tokens import cached, dense_attention, kept_tokens_only, layers_of_kind
from video_families import FAMILIES, build, prompt

import segmo
from segmo.errors import NotRewrittenError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# Families whose code decides in Python by what tensors hold, so that Dynamo breaks it into several graphs and the video
# enters in another one than the decoder: Qwen4's indexer loops over the tokens. They run as they are, with a warning.
AS_IT_IS = ("qwen4_exp",)
WHOLE = [family for family in FAMILIES if family not in AS_IT_IS]
# Where no token can be dropped, and why; segments apply.
NO_CUT = {"minimax_m3_vl": "cannot-follow"}  # its index takes position ids for places among the keys
CUT = [family for family in WHOLE if family not in NO_CUT]
# Where segments take a number: there are recurrent layers between those with full attention.
HYBRIDS = (
    "qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "nemotron_h_omni", "lfm3_vl",
)  # fmt: skip
# Where no layer can be cut into segments, and why: their masks hold more than causality.
NO_SEGMENTS = {
    "dots3_note": "foreign-mask",  # an index picks the keys of each query
    "glm5_next": "foreign-mask",
    "molmo2": "foreign-mask",  # frame tokens see each other both ways
    "gemma4_unified": "foreign-mask",
}
# Whose frames are chosen in front of the vision encoder; with --exhaustive, all are tried. test_upstream_families.py
# compares the features of every one of them.
UPSTREAM = ("internvl", "llava_next_video")
# Their forward gives the logits of every token, or adds features of the video in the last of these few layers.
EVERY_ROW = (
    "qwen2_5_omni", "qwen3_omni_moe", "video_llama_3", "minicpmv4_6", "nemotron_h_omni",
    "qwen3_vl", "qwen3_vl_moe", "cohere_compass", "cosmos3_omni",
)  # fmt: skip
# One family for each kind of decoder; with --exhaustive, all are tried.
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


def answered(inputs: dict[str, torch.Tensor], sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """The prompt with all but the last of its new tokens, as one prompt."""
    added = sequences.shape[1] - 1 - inputs["input_ids"].shape[1]
    more = {
        name: torch.nn.functional.pad(inputs[name], (0, added), value=float(name == "attention_mask"))
        for name in ("attention_mask", "mm_token_type_ids")
        if name in inputs
    }
    return {**inputs, **more, "input_ids": sequences[:, :-1]}


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||."""
    return float((out.float() - reference.float()).norm() / reference.float().norm().clamp(min=1e-12))


def matches(name: str) -> int:
    graphs = segmo.last_report().to_dict()["graphs"]
    return sum(each["matches"] for graph in graphs for each in graph["passes"] if each["name"] == name)


def missed() -> list[str]:
    return [miss.code for record in segmo.last_report().graphs[0].passes for miss in record.misses]


@pytest.mark.parametrize("family", WHOLE)
def test_everything_kept_and_one_segment_is_the_model(family: str, request: pytest.FixtureRequest) -> None:
    if family not in (*KINDS, *NO_CUT) and not request.config.getoption("--exhaustive"):
        pytest.skip("one family for each kind of decoder is enough")
    model, inputs = build(family), prompt(family)
    eager = generate(model, inputs, 4)
    compiled = generate(compiled_prefill(model, keep=1.0, segments=1), inputs, 4)
    assert torch.equal(compiled.sequences, eager.sequences)
    assert error(compiled.logits[0], eager.logits[0]) < 1e-4


@pytest.mark.parametrize("family", CUT)
def test_the_cut_is_the_decoder_on_the_kept_tokens(family: str) -> None:
    """Logits of three tokens and what the cache holds after them, for two lengths of video in one compilation."""
    model = build(family)
    compiled_prefill(model, keep=0.25, segments="scene" if family in HYBRIDS else 1)  # none by default in hybrids
    held = []
    for frames in (6, 9):
        inputs = prompt(family, frames, seed=frames)
        out = generate(model, inputs, 3)
        report = segmo.last_report()
        tokens = report.to_dict()["tokens"]
        assert matches("select-tokens") == 1
        assert tokens["kept"] == int(0.25 * tokens["video"])
        assert matches("trim-last-layer") == (family not in EVERY_ROW)
        assert report.prefill is not None
        assert report.prefill.index is not None
        sizes = report.prefill.frame[0, report.prefill.cell[0] >= 0].bincount()
        assert len(sizes) == frames  # as the prompt was laid out
        assert (sizes[:-1] == sizes[0]).all()  # a newline belongs to the last one
        held.append((inputs, out, report.prefill.index[0], report.prefill.cell[0] >= 0))
    assert [graph.kind for graph in report.graphs].count("prefill") == 1
    if family in HYBRIDS:
        assert "hybrid" in missed()
    segmo.uncompile(model)
    for inputs, out, index, video in held:
        whole, new = answered(inputs, out.sequences), torch.arange(2)
        with (
            torch.no_grad(),
            kept_tokens_only(
                model, torch.cat([index, len(video) + new]), video.new_tensor([*video.tolist(), False, False])
            ),
        ):
            expected = model(**whole, use_cache=True)
        for step, logits in enumerate(out.logits):
            assert error(logits[0], expected.logits[0, step - 3]) < 1e-4, step
        ours, theirs = cached(out.past_key_values), cached(expected.past_key_values)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.shape == theirs[name].shape, name
            assert error(value, theirs[name]) < 1e-4, name


@pytest.mark.parametrize("family", WHOLE)
def test_segments_are_the_dense_mask(family: str, request: pytest.FixtureRequest) -> None:
    """In the layers with full attention; local and recurrent layers run as they are."""
    if family not in KINDS and not request.config.getoption("--exhaustive"):
        pytest.skip("one family for each kind of decoder is enough")
    model, inputs = build(family), prompt(family, 9)
    out = generate(compiled_prefill(model, keep=1.0, segments=3), inputs, 1)
    report = segmo.last_report()
    if family in NO_SEGMENTS:
        assert NO_SEGMENTS[family] in missed()
        assert matches("segment-attention") == 0
        return
    assert matches("segment-attention") == len(layers_of_kind(model, "full"))
    prefill = report.prefill
    assert prefill is not None
    assert prefill.segment is not None
    assert int(prefill.segment.max()) == 2
    segmo.uncompile(model)
    context = None if prefill.context is None else prefill.context[0]
    with dense_attention(model, dense_mask(prefill.segment[0], context)):
        expected = generate(model, inputs, 1)
    assert error(out.logits[0], expected.logits[0]) < 1e-4


@pytest.mark.parametrize("family", CUT)
def test_frames_that_are_left_out_of_the_encoder_are_not_kept(family: str, request: pytest.FixtureRequest) -> None:
    """And the answer is that of the decoder on the kept tokens of a video that was encoded whole, three tokens long."""
    if family not in UPSTREAM and not request.config.getoption("--exhaustive"):
        pytest.skip("a family of one run of tokens and one with a run for each frame are enough")
    model, inputs = build(family), prompt(family, 9)
    out = generate(segmo.compile(model, keep=0.25, frames=0.5, segments=1), inputs, 3)
    report = segmo.last_report()
    prefill = report.prefill
    assert report.frames is not None
    assert prefill is not None
    assert prefill.index is not None
    assert report.frames.encoded < 9 == report.frames.video
    index, video = prefill.index[0], prefill.cell[0] >= 0
    assert set(prefill.frame[0, index][video[index]].tolist()) <= set(report.frames.kept[0])
    assert int(video[index].sum()) == int(0.25 * video.sum())
    segmo.uncompile(model)
    whole, new = answered(inputs, out.sequences), torch.arange(2)
    index, video = torch.cat([index, len(video) + new]), torch.cat([video, torch.zeros(2, dtype=torch.bool)])
    with torch.no_grad(), kept_tokens_only(model, index, video):
        expected = model(**whole, use_cache=True)
    for step, logits in enumerate(out.logits):
        assert error(logits[0], expected.logits[0, step - 3]) < 1e-4, step


@pytest.mark.parametrize("family", NO_CUT)
def test_where_no_token_can_be_dropped_all_are_kept_and_it_says_so(family: str) -> None:
    model, inputs = build(family), prompt(family)
    eager = generate(model, inputs, 3)
    compiled_prefill(model, keep=0.25, segments=1)
    with pytest.warns(UserWarning, match="SegMo left a part of a prefill graph as it was"):
        out = generate(model, inputs, 3)
    assert NO_CUT[family] in missed()
    assert torch.equal(out.sequences, eager.sequences)
    with pytest.raises(NotRewrittenError, match="leaves frames out of the vision encoder"):
        generate(segmo.compile(model, keep=0.25, frames=0.5), inputs, 1)


def test_experts_are_cut_in_a_graph_for_one_length() -> None:
    """The places of their rows are counted by a plain number there."""
    model, inputs = build("qwen3_vl_moe"), prompt("qwen3_vl_moe")
    out = generate(compiled_prefill(model, keep=0.25, segments=1, dynamic=False), inputs, 1)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    assert prefill.index is not None
    segmo.uncompile(model)
    with kept_tokens_only(model, prefill.index[0], prefill.cell[0] >= 0):
        expected = generate(model, inputs, 1)
    assert error(out.logits[0], expected.logits[0]) < 1e-4


def test_a_graph_for_one_length_that_cannot_be_cut_says_what_would_help() -> None:
    """Kimi pads its latent heads to the prompt's length, and no symbol tells that it is this length."""
    model, inputs = build("kimi_k25"), prompt("kimi_k25")
    eager = generate(model, inputs, 2)
    compiled_prefill(model, keep=0.25, segments=1, dynamic=False)
    with pytest.warns(UserWarning, match="dynamic=True"):
        out = generate(model, inputs, 2)
    assert "fixed-lengths" in missed()
    assert matches("trim-last-layer") == 1
    assert torch.equal(out.sequences, eager.sequences)


@pytest.mark.parametrize("family", AS_IT_IS)
def test_what_does_not_apply_runs_as_it_was_and_says_so(family: str) -> None:
    """A short answer: its many graphs take long to compile."""
    model, inputs = build(family), prompt(family, 1)
    eager = generate(model, inputs, 1)
    compiled_prefill(model, keep=0.25)
    with pytest.warns(UserWarning, match="SegMo left a prefill"):
        out = generate(model, inputs, 1)
    assert torch.equal(out.sequences, eager.sequences)
