"""SegMo's operators under other conditions: right, or refused."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from eager_reference import cut_logits
from models import LAYERS, build, prompt

import segmo
from segmo.compiler import backend
from segmo.errors import CompileError, NotRewrittenError
from segmo.runtime import ops

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(**inputs, logits_to_keep=1).logits[:, -1]
    return out


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids: torch.Tensor = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    return ids


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_autocast(family: str) -> None:
    model, inputs = build(family), prompt(family)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    with autocast():
        expected = logits(model, inputs)
    segmo.compile(model, keep=1.0, segments=1, strict=True)
    with autocast():
        torch.testing.assert_close(logits(model, inputs), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    segmo.compile(model, keep=0.5, segments=2, strict=True)
    with autocast():
        found = logits(model, inputs)
        prefill = segmo.last_report().prefill
        assert prefill is not None
        expected = cut_logits(segmo.uncompile(model), inputs, prefill)
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_inference_mode_and_none() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5, segments=2)
    with torch.inference_mode():
        first = generate(model, inputs)
    assert torch.equal(generate(model, inputs), first)


def test_gradients_are_right_or_refused() -> None:
    """Weights want gradients, as a model's do that was just loaded, and nobody said no_grad."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    expected = model(**inputs).logits[:, -1]
    weight = model.model.language_model.layers[0].self_attn.v_proj.weight
    (wanted,) = torch.autograd.grad(expected.sum(), weight)
    segmo.compile(model, keep=1.0, segments=1)
    found = model(**inputs, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), weight)[0], wanted, rtol=1e-3, atol=1e-3)
    segmo.compile(model, keep=0.5, segments=2)
    found = model(**inputs, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(found.detach(), logits(model, inputs), rtol=1e-4, atol=1e-4)
    with pytest.raises(CompileError, match="no gradient goes through SegMo's operators"):
        torch.autograd.grad(found.sum(), weight)


@pytest.mark.parametrize("scorer", ["embedding", "attention"])
def test_deterministic_algorithms(scorer: str) -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5, scorer=scorer, layer=1)
    expected = logits(model, inputs)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(logits(segmo.compile(model, keep=0.5, scorer=scorer, layer=1), inputs), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_model_that_is_moved_to_another_dtype() -> None:
    """With frames that are chosen before the vision encoder, which has its own weights."""
    model, inputs, options = build("qwen2_vl"), prompt("qwen2_vl"), {"segments": 2, "frames": 0.75}
    segmo.compile(model, keep=0.5, strict=True, **options)
    logits(model, inputs)
    model.to(torch.bfloat16)
    expected = logits(segmo.compile(build("qwen2_vl", torch.bfloat16), keep=0.5, **options), inputs)
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.gpu
def test_a_model_that_is_moved_to_another_device_and_back() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5, strict=True, lowering="flash")
    expected = logits(model, inputs)
    model.to("cuda")
    moved = logits(model, {name: value.cuda() for name, value in inputs.items()})
    torch.testing.assert_close(moved.cpu(), expected, rtol=1e-2, atol=1e-2)
    model.to("cpu")
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_second_model_with_other_options() -> None:
    inputs = prompt("qwen2_vl", frames=8)
    models = {keep: segmo.compile(build("qwen2_vl"), keep=keep, strict=True) for keep in (0.25, 0.5)}
    for keep in (0.25, 0.5, 0.25):
        out = models[keep].generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
        kept = inputs["input_ids"].shape[1] - 32 + int(32 * keep)
        assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [kept] * LAYERS


def test_a_call_that_fails_does_not_spoil_the_calls_after_it() -> None:
    """Dynamo would never trace again what an error came through while it was traced."""
    inputs = prompt("qwen2_vl")
    expected = generate(segmo.compile(build("qwen2_vl"), keep=0.5), inputs)
    compiled = torch.compile(build("qwen2_vl"), backend="segmo", dynamic=True, options={"keep": 0.5, "strict": True})
    wrong = {"position_ids": torch.zeros(3, 1, 7, dtype=torch.long)}
    for _ in range(2):  # before anything was compiled, and behind it
        with pytest.raises(RuntimeError), torch.no_grad():
            compiled(**inputs, **wrong)
        assert torch.equal(generate(compiled, inputs), expected)
        assert [graph.kind for graph in segmo.last_report().graphs if graph.rewritten]


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> Iterator[None]:
    """Ctrl-C when a function is called."""

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupt)
        yield


@pytest.mark.parametrize("compile_", [segmo.compile, lambda m, **o: torch.compile(m, backend="segmo", options=o)])
def test_ctrl_c_while_a_prefill_compiles_and_while_it_runs(
    compile_: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    model.set_attn_implementation("eager")
    options = {"keep": 0.5, "segments": 2, "strict": True}
    expected = generate(segmo.compile(build("qwen2_vl"), **options), inputs)
    torch._dynamo.reset()  # before torch 2.12 a model runs the graphs of another one of its class
    compiled = compile_(model, **options)
    with interrupted(monkeypatch, backend, "run_pipeline"), pytest.raises(KeyboardInterrupt):
        generate(compiled, inputs)
    assert torch.equal(generate(compiled, inputs), expected)
    with interrupted(monkeypatch, ops, "attention_implementation"), pytest.raises(KeyboardInterrupt):
        generate(compiled, inputs)
    assert torch.equal(generate(compiled, inputs), expected)
    assert not torch._dynamo.config.capture_scalar_outputs
    if compiled is not model:
        assert model.config.get_text_config()._attn_implementation == "eager"


def checkpointed(model: Any) -> None:
    """As a trainer does it."""
    model.gradient_checkpointing_enable()
    model.train()


def disabled(model: Any) -> None:
    for layer in model.get_decoder().layers:
        layer.forward = torch.compiler.disable(layer.forward)


@pytest.mark.parametrize(
    ("how", "why"), [(checkpointed, "gradient checkpointing is on"), (disabled, "graph_breaks")], ids=["trainer", "off"]
)
def test_a_decoder_that_runs_outside_of_the_graphs_is_told(how: Callable[[Any], None], why: str) -> None:
    inputs = prompt("qwen2_5_vl")
    model = build("qwen2_5_vl")
    how(model)
    segmo.compile(model, keep=0.25, segments=2)
    with torch.no_grad(), pytest.warns(UserWarning, match=rf"select-tokens: .*outside of the graphs.*{why}"):
        out = model(**inputs, use_cache=False).logits
    with torch.no_grad():
        torch.testing.assert_close(out, build("qwen2_5_vl")(**inputs).logits)
    assert "decoder-outside" in {miss.code for graph in segmo.last_report().graphs for _, miss in graph.unexpected()}
    segmo.compile(model, keep=0.25, segments=2, strict=True)
    with pytest.raises(NotRewrittenError, match=why):
        model(**inputs, use_cache=False)


def test_scores_that_nobody_reads_are_told() -> None:
    model = segmo.compile(build("qwen2_vl"), keep=0.5, segments=2)
    scores = segmo.external_scores(torch.ones(6))
    with torch.no_grad(), pytest.warns(UserWarning, match='compiled with scorer="embedding"'), scores:
        model(**prompt("qwen2_vl"))


def test_a_loss_over_dropped_tokens_is_told() -> None:
    model, inputs = build("qwen3_vl"), prompt("qwen3_vl")
    labels = inputs["input_ids"].clone()
    asked = labels.masked_fill(labels == model.config.video_token_id, -100)
    segmo.compile(model, keep=0.5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        told = model(**inputs, labels=asked)
    assert torch.isfinite(told.loss)
    with torch.no_grad(), pytest.warns(UserWarning, match=r"labels stand at \d+ tokens that SegMo dropped"):
        model(**inputs, labels=labels)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_embeddings_in_place_of_ids_have_the_same_scenes(family: str) -> None:
    """Where transformers gets no ids it makes text positions, in which no frame begins."""
    model, inputs = build(family), prompt(family)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    segmo.compile(model, keep=0.5)
    found = []
    for given in (inputs, {name: x for name, x in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeds}):
        model.generate(**given, max_new_tokens=1, do_sample=False)
        scenes = segmo.last_report().to_dict()["scenes"]
        found.append([(scene["start_frame"], scene["end_frame"], scene["tokens"]) for scene in scenes])
    assert found[0] == found[1]
    assert len(found[0]) > 1


def test_a_call_without_ids_is_told_what_to_pass() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    segmo.compile(model, keep=0.5)
    given = {name: x for name, x in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeds}
    with torch.no_grad(), pytest.warns(UserWarning, match=r"pass input_ids with all that the processor gives"):
        model(**given)
    assert "last rewritten prefill" not in str(segmo.last_report())


def test_a_keep_that_leaves_nothing_of_the_video_is_told() -> None:
    model, inputs = build("qwen3_vl"), prompt("qwen3_vl")
    segmo.compile(model, keep=1e-4)
    with pytest.warns(UserWarning, match="nothing of the video is seen"):
        logits(model, inputs)
