"""Frames that are left out before the encoder: the same features as leaving them out behind it, wherever it applies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_reference import cut_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CELLS, FAMILIES, SIDE, build, prompt

import segmo
from segmo.calls.inputs import encoded
from segmo.errors import NotRewrittenError, OptionError, PromptError
from segmo.options import Options
from segmo.passes.pipeline import DEFAULT
from segmo.runtime.frame_budget import frame_count
from segmo.upstream.encoder import FrameEncoder, encode_all, encoding

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
MODELS = {family: build(family) for family in FAMILIES}


def features(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[list[torch.Tensor], Any]:
    """What the encoder gives under these options, flat, and the counts of the report."""
    encoder = FrameEncoder(model, Options.parse(options))
    grid = {"video_grid_thw": inputs["video_grid_thw"]} if "video_grid_thw" in inputs else {}
    try:
        with encoding(encoder, inputs), torch.no_grad():
            out = model.base_model.get_video_features(
                pixel_values_videos=inputs["pixel_values_videos"], return_dict=True, **grid
            )
    finally:
        encode_all(model)
    parts = [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]
    flat = [torch.cat(list(p)) if isinstance(p, (list, tuple)) else p.flatten(0, 1) for p in parts]
    return flat, segmo.last_report().frames


def whole(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The features of every frame."""
    grid = {"video_grid_thw": inputs["video_grid_thw"]} if "video_grid_thw" in inputs else {}
    with torch.no_grad():
        out = model.base_model.get_video_features(inputs["pixel_values_videos"], return_dict=True, **grid)
    rows = out.pooler_output
    return torch.cat(list(rows)) if isinstance(rows, (tuple, list)) else rows.flatten(0, 1)


@settings(max_examples=15)
@given(
    family=st.sampled_from(FAMILIES),
    frames=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    batch=st.integers(1, 2),
    share=st.floats(0.05, 0.95),
    external=st.booleans(),
    seed=st.integers(0, 99),
)
def test_leaving_frames_out_first_equals_leaving_them_out_after(
    family: str, frames: list[int], batch: int, share: float, external: bool, seed: int
) -> None:
    videos = tuple(frames[:1] * len(frames) if family == "llava_onevision" else frames)
    model, inputs = MODELS[family], prompt(family, frames=videos if len(videos) > 1 else videos[0], batch=batch)
    if family == "llava_onevision":
        pixels = inputs["pixel_values_videos"]
        inputs["pixel_values_videos"] = pixels.reshape(batch * len(videos), videos[0], *pixels.shape[2:])
    options: dict[str, Any] = {"frames": share, "scorer": "external" if external else "embedding"}
    scores = torch.randn(sum(videos), generator=torch.Generator().manual_seed(seed))
    with segmo.external_scores(scores):
        above, counts = features(model, inputs, **options)
        below, all_counts = features(model, inputs, disable="push-selection", **options)
    for few, all_of_them in zip(above, below, strict=True):
        torch.testing.assert_close(few, all_of_them, rtol=1e-4, atol=1e-5)
    wanted = [frame_count(count, share) for count in videos] * batch
    assert [len(kept) for kept in counts.kept] == wanted
    assert counts.kept == all_counts.kept
    assert all_counts.encoded == sum(videos) * batch == counts.video
    assert sum(wanted) <= counts.encoded <= (sum(wanted) if external else 3 * sum(wanted))
    full = whole(model, inputs)
    there = above[0].abs().sum(1) > 0
    torch.testing.assert_close(above[0][there], full[there], rtol=1e-4, atol=1e-5)
    newlines = len(videos) * batch if family == "llava_onevision" else 0
    assert int(there.sum()) == sum(wanted) * CELLS[family] + newlines


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_itself_sees_no_other_frame(family: str) -> None:
    """Counted inside the encoder, not by the report."""
    model, inputs = build(family), prompt(family, frames=8)
    base = model.base_model
    first = base.vision_tower if family == "llava_onevision" else base.visual.patch_embed
    encoder = FrameEncoder(model, Options(frames=0.25, scorer="external"))
    grid = {"video_grid_thw": inputs["video_grid_thw"]} if "video_grid_thw" in inputs else {}
    seen: list[int] = []
    for scores in ([9.0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 9.0]):  # the first call tries the encoder out too
        seen.clear()
        hook = first.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        with encoding(encoder, inputs), torch.no_grad(), segmo.external_scores(scores):
            base.get_video_features(pixel_values_videos=inputs["pixel_values_videos"], **grid)
        hook.remove()
    counts = segmo.last_report().frames
    encode_all(model)
    assert counts is not None
    assert counts.encoded == 2
    assert seen == [2 if family == "llava_onevision" else 2 * SIDE * SIDE]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_the_decoder_on_the_kept_tokens_at_their_places(family: str) -> None:
    """Through ``generate``: what is kept are tokens of chosen frames, with the positions of the whole prompt."""
    model = build(family)
    segmo.compile(model, keep=0.3, frames=0.5, segments=2, context=1)
    for frames in (6, 8):
        inputs = prompt(family, frames=frames, batch=2, seed=frames)
        out = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        report = segmo.last_report()
        assert report.prefill is not None
        assert report.frames is not None
        tokens = report.prefill.tokens()
        assert tokens["kept"] == int(0.3 * tokens["video"])
        for row in range(2):
            index = report.prefill.index[row]  # type: ignore[index]
            cell, frame = report.prefill.cell[row, index], report.prefill.frame[row, index]
            # LLaVA-OneVision's newline belongs to the last frame, and is there without it.
            inside = frame[(cell >= 0) & (cell < CELLS[family])]
            assert set(inside.tolist()) <= set(report.frames.kept[row])
        reference = cut_logits(model, inputs, report.prefill)
        assert float((out.logits[0] - reference).norm() / reference.norm()) < 1e-5
        assert [graph.kind for graph in report.graphs][:2] == ["vision", "prefill"]
        assert report.graphs[0].passes[0].matches >= 1
        assert report.to_dict()["frames"]["encoded"] < 2 * frames


def test_all_tokens_of_the_chosen_frames_when_keep_is_not_below() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=8)
    segmo.compile(model, keep=1, frames=0.25, scorer="external")
    with segmo.external_scores([0, 0, 0, 9, 9, 9, 0, 0]):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    report = segmo.last_report()
    assert report.frames is not None
    assert report.prefill is not None
    kept = report.prefill.kept()
    video = report.prefill.cell[0, kept] >= 0
    assert set(report.prefill.frame[0, kept][video].tolist()) == set(report.frames.kept[0])
    assert int(video.sum()) == 2 * CELLS["qwen2_vl"]
    assert set(report.frames.kept[0]) & {3, 4, 5}
    assert "frames: 8, 2 of them encoded, 2 kept" in str(report)


def test_several_answers_share_one_choice() -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=6)
    segmo.compile(model, keep=0.5, frames=0.5)
    out = model.generate(**inputs, max_new_tokens=2, num_beams=2, num_return_sequences=2, do_sample=False)
    assert out.shape[0] == 2


def _mixed(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    import transformers.models.qwen2_vl.modeling_qwen2_vl as modeling

    seqlens = modeling.get_vision_attention_seqlens
    monkeypatch.setattr(
        modeling, "get_vision_attention_seqlens", lambda grid, config, kwargs: seqlens(grid, config, True, kwargs)
    )


def _placed(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    model.model.visual.patch_embed.register_forward_hook(
        lambda module, args, out: out + torch.arange(len(out))[:, None] // 16 * torch.linspace(0, 1, out.shape[1])
    )


def _sorted(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    model.model.visual.patch_embed.register_forward_hook(lambda module, args, out: out.sort(dim=1).values)


def _branching(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    model.model.visual.patch_embed.register_forward_hook(lambda module, args, out: out if out.sum() > 0 else -out)


@pytest.mark.parametrize(
    ("change", "code"),
    [(_mixed, "frames-mix"), (_placed, "frame-place"), (_sorted, "unknown-operator"), (_branching, "pixels-decide")],
)
def test_what_cannot_be_shown_stays_behind_the_encoder_and_is_said(
    change: Any, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=6)
    change(monkeypatch, model)
    with pytest.warns(UserWarning, match="left a vision graph as it was"):
        found, counts = features(model, inputs, frames=0.5)
    misses = segmo.last_report().graphs[0].passes[0].misses
    assert [miss.code for miss in misses] == [code]
    assert counts.encoded == 6
    full, there = whole(model, inputs), found[0].abs().sum(1) > 0
    torch.testing.assert_close(found[0][there], full[there], rtol=1e-4, atol=1e-5)
    assert int(there.sum()) == 3 * CELLS["qwen2_vl"]
    with pytest.raises(NotRewrittenError, match="vision graph"):
        features(model, inputs, frames=0.5, strict=True)


def test_outside_of_a_call_every_frame_is_encoded() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    expected = whole(model, inputs)
    segmo.compile(model, frames=0.25)
    assert torch.equal(whole(model, inputs), expected)
    segmo.uncompile(model)
    assert "get_video_features" not in vars(model.base_model)
    assert "generate" not in vars(model)


def test_through_a_function_every_frame_is_encoded_and_that_is_said() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=8)

    @torch.compile(backend="segmo", dynamic=True, options={"keep": 1, "frames": 0.5})
    def step(**inputs: Any) -> Any:
        return model(**inputs, logits_to_keep=1)

    with torch.no_grad(), pytest.warns(UserWarning, match=r"encoder is not SegMo's to call.*segmo\.compile"):
        step(**encoded(model, inputs))
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 16


def test_a_decoder_that_cannot_drop_their_tokens_is_an_error() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, frames=0.5, disable="select-tokens")
    with pytest.raises(NotRewrittenError, match="select-tokens is switched off"):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    torch._dynamo.reset()
    segmo.compile(model, frames=0.5)
    with pytest.raises(NotRewrittenError, match="cache of fixed length"):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, cache_implementation="static")


def test_text_only_prompts_run_as_they_are() -> None:
    model = build("qwen2_vl")
    text = {name: value[:, -6:] for name, value in prompt("qwen2_vl").items() if value.dim() == 2}
    text = {name: text[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    expected = model.generate(**text, max_new_tokens=2, do_sample=False)
    segmo.compile(model, frames=0.25, strict=True)
    assert torch.equal(model.generate(**text, max_new_tokens=2, do_sample=False), expected)


def test_the_attention_scorer_and_wrong_scores_are_refused() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=6)
    with pytest.raises(OptionError, match='does not go with scorer="attention"'):
        segmo.compile(model, frames=0.5, scorer="attention")
    with pytest.raises(PromptError, match="needs scores"):
        features(model, inputs, frames=0.5, scorer="external")
    with segmo.external_scores([1.0, 2.0, 3.0, 4.0]), pytest.raises(PromptError, match="4 external scores"):
        features(model, inputs, frames=0.5, scorer="external")
    with segmo.external_scores([torch.nan] * 6), pytest.raises(PromptError, match="NaN"):
        features(model, inputs, frames=0.5, scorer="external")


def test_embeddings_alone_do_not_tell_where_frames_stand() -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=8)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    alone = {**{name: value for name, value in inputs.items() if name != "input_ids"}, "inputs_embeds": embeds}
    segmo.compile(model, frames=0.5, keep=0.25)
    with pytest.warns(UserWarning, match="pass input_ids beside inputs_embeds") as said:
        model.generate(**alone, max_new_tokens=1, do_sample=False)
    assert any(f"{__file__}:" in str(each.message) for each in said)
    assert segmo.last_report().frames is None
    segmo.compile(model, frames=0.5, keep=0.25, strict=True)
    with pytest.raises(NotRewrittenError, match="pass input_ids beside"):
        model.generate(**alone, max_new_tokens=1, do_sample=False)
    model.generate(**inputs, inputs_embeds=embeds, max_new_tokens=1, do_sample=False)
    assert segmo.last_report().frames.encoded == 4


def test_named_in_the_pipeline_of_a_decoder_it_says_that_there_is_nothing_to_do() -> None:
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5, pipeline=f"push-selection,{DEFAULT}", strict=True)
    with torch.no_grad():
        model(**prompt("qwen2_vl"), logits_to_keep=1)
    graph = next(graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    assert [miss.code for miss in graph.passes[0].misses] == ["no-pixels"]
    assert graph.passes[1].matches == 1
