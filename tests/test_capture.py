"""How often Dynamo compiles, what it needs to be set up, and that nothing falls back in silence."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from models import LAYERS, build, prompt
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward

import segmo
from segmo.errors import CompileError, NotRewrittenError, OptionError
from segmo.passes.select_tokens import SelectTokens

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int = 2) -> torch.Tensor:
    ids: torch.Tensor = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return ids


def kinds() -> list[str]:
    return [graph["kind"] for graph in segmo.last_report().to_dict()["graphs"]]


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_one_prefill_graph_serves_all_lengths(family: str) -> None:
    model = build(family)
    model.compile(backend="segmo", dynamic=True, options={"keep": 0.5})
    for frames in (6, 9, 4, 11):
        generate(model, prompt(family, frames=frames))
    assert kinds() == ["prefill", "decode"]


def test_static_first_then_dynamic() -> None:
    model = build("qwen2_vl")
    model.compile(backend="segmo")
    generate(model, prompt("qwen2_vl", frames=6))
    assert kinds()[0] == "prefill"
    for frames in (9, 4, 11):
        generate(model, prompt("qwen2_vl", frames=frames))
    assert kinds().count("prefill") == 2
    for graph in segmo.last_report().to_dict()["graphs"]:
        if graph["kind"] == "prefill":
            matches = {each["name"]: each["matches"] for each in graph["passes"]}
            assert list(matches.values())[:6] == [1, LAYERS, 1, 0, LAYERS, 1]
            assert matches["tile-rows"] == LAYERS
            assert matches["reuse-buffers"] > LAYERS


def test_works_without_an_import_and_with_dynamo_as_it_comes() -> None:
    """In a process of its own, because importing the backend sets Dynamo up."""
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from models import build, prompt
model = build("qwen3_vl")
assert "segmo.compiler.backend" not in sys.modules
model.compile(backend="segmo", dynamic=True, options={"keep": 0.5})
model.generate(**prompt("qwen3_vl"), max_new_tokens=2, do_sample=False)
import segmo
report = segmo.last_report().to_dict()
assert [g["kind"] for g in report["graphs"]] == ["prefill", "decode"], report["graphs"]
flags = ["capture_scalar_outputs", "capture_dynamic_output_shape_ops", "recompile_limit"]
assert report["setup"]["dynamo_flags_set"] == flags
assert report["tokens"]["kept"] == 12
"""
    tests = str(__file__).rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code, tests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.families("qwen2_5_vl", "llava_onevision")
def test_a_direct_call_is_one_graph_too(family: str) -> None:
    model, inputs = build(family), prompt(family, frames=6)
    segmo.compile(model, keep=1.0, segments=2)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert kinds() == ["prefill"]
    assert segmo.last_report().to_dict()["graphs"][0]["passes"][1]["matches"] == LAYERS
    assert bool(logits.isfinite().all())


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_logits_of_dropped_tokens_are_nan_and_the_others_right(family: str) -> None:
    model, inputs = build(family), prompt(family, frames=6)
    segmo.compile(model, keep=0.5, segments=1)
    with torch.no_grad():
        full = model(**inputs).logits
        last = model(**inputs, logits_to_keep=1).logits
    prefill = segmo.last_report().prefill
    assert prefill is not None
    assert prefill.index is not None
    assert full.shape[:2] == inputs["input_ids"].shape
    kept = torch.zeros(full.shape[1], dtype=torch.bool)
    kept[prefill.index[0]] = True
    assert bool(full[0, kept].isfinite().all())
    assert bool(full[0, ~kept].isnan().all())
    torch.testing.assert_close(full[:, -1:], last, rtol=1e-5, atol=1e-5)


def test_a_graph_break_between_merge_and_decoder_is_said() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    expected = generate(model, inputs)
    rotary = model.model.language_model.rotary_emb
    rotary.forward = torch._dynamo.disable(rotary.forward)
    model.compile(backend="segmo", dynamic=True, options={"keep": 0.5})
    with pytest.warns(UserWarning, match=r"outside this graph .*segmo\.compile"):
        ids = generate(model, inputs)
    assert torch.equal(ids, expected)


def test_strict_turns_that_into_an_error() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    rotary = model.model.language_model.rotary_emb
    rotary.forward = torch._dynamo.disable(rotary.forward)
    segmo.compile(model, keep=0.5, strict=True)
    with pytest.raises(NotRewrittenError, match="outside this graph"):
        generate(model, inputs)


def test_a_family_without_an_entry_is_compiled_by_inference() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    model.config.model_type = "owl_vl"
    segmo.compile(model, keep=0.5, strict=True)
    generate(model, inputs)
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 12


def test_text_only_prompts_run_exactly_and_without_a_warning() -> None:
    model = build("qwen2_vl")
    text = {name: value[:, -6:] for name, value in prompt("qwen2_vl").items() if value.dim() == 2}
    text = {name: text[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    expected = generate(model, text)
    segmo.compile(model, keep=0.25, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(generate(model, text), expected)
    assert {miss["code"] for miss in segmo.last_report().to_dict()["graphs"][0]["passes"][0]["misses"]} == {"text-only"}


def test_an_exception_in_a_pass_is_an_error_not_an_eager_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them the kinds after which Dynamo would warn and run the model as it was."""
    from torch._subclasses.fake_tensor import DynamicOutputShapeException

    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    for error in (DynamicOutputShapeException("x"), KeyError("x"), NotImplementedError("x")):
        torch._dynamo.reset()

        def fail(self: Any, rewrite: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(SelectTokens, "run", fail)
        segmo.compile(model, keep=0.5)
        with pytest.raises(CompileError, match="pass 'select-tokens' failed"):
            generate(model, inputs)
        segmo.uncompile(model)
        optimized = torch.compile(model, backend="segmo", options={"keep": 0.5})
        with pytest.raises(CompileError, match="pass 'select-tokens' failed"):
            generate(optimized, inputs)


def test_unknown_options_are_refused_with_the_nearest_match() -> None:
    model = build("qwen2_vl")
    for compile_ in (model.compile, lambda **given: torch.compile(model, **given)):
        with pytest.raises(OptionError, match="did you mean 'keep'"):
            compile_(backend="segmo", options={"kep": 0.5})
        with pytest.raises(OptionError, match=r"mode is 'fastest'.*reduce-overhead"):
            compile_(backend="segmo", mode="fastest")
    with pytest.raises(OptionError, match="did you mean 'segments'"):
        segmo.compile(model, segment=2)


def test_logits_of_places_in_the_prompt_are_those_places() -> None:
    """Places count in the whole prompt, whatever was dropped in front of them."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=6)
    segmo.compile(model, keep=0.5, segments=1)
    places = torch.tensor([3, 9, 10, inputs["input_ids"].shape[1] - 1])
    with torch.no_grad():
        full = model(**inputs).logits
        last = model(**inputs, logits_to_keep=12).logits
        some = model(**inputs, logits_to_keep=places).logits
    assert bool(full[:, -12:].isnan().any())
    torch.testing.assert_close(last, full[:, -12:], rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(some, full[:, places], rtol=1e-5, atol=1e-5, equal_nan=True)


def test_an_attention_that_is_not_known_is_said() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    ALL_ATTENTION_FUNCTIONS.register("of_ours", eager_attention_forward)
    model.config.get_text_config()._attn_implementation = "of_ours"
    segmo.compile(model, keep=0.5)
    with pytest.warns(UserWarning, match=r"attention is 'of_ours'.*attn_implementation=\"sdpa\""):
        generate(model, inputs)


def test_the_last_report_is_of_the_model_that_ran_last() -> None:
    first, second = build("qwen2_vl"), build("qwen2_vl")
    segmo.compile(first, keep=0.25)
    segmo.compile(second, keep=0.5)
    for model in (first, second, first):
        generate(model, prompt("qwen2_vl"))
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 6
