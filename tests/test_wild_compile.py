"""``torch.compile(model, backend="segmo")`` and its relatives do what ``segmo.compile`` does."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from models import CELLS, LAYERS, build, prompt
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

import segmo
from segmo.errors import CompileError, NotRewrittenError, OptionError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

FRAMES = 6


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the last token, from a direct call with pixels."""
    with torch.no_grad():
        out: torch.Tensor = model(**inputs, logits_to_keep=1).logits
    return out


def generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int = 3) -> Any:
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True)


def held(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]


def rewritten(kind: str = "prefill") -> list[bool]:
    return [graph.rewritten for graph in segmo.last_report().graphs if graph.kind == kind]


def whole(model: Any, **how: Any) -> Any:
    return torch.compile(model, backend="segmo", **how)


def in_place(model: Any, **how: Any) -> Any:
    model.compile(backend="segmo", **how)
    return model


def forward(model: Any, **how: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="segmo", **how)
    return model


class Said(logging.Handler):
    """What Dynamo logs of graphs that break."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += [record.getMessage()] if "raph break" in record.getMessage() else []


@pytest.fixture
def breaks() -> Iterator[Said]:
    said, log = Said(), logging.getLogger("torch._dynamo")
    log.addHandler(said)
    yield said
    log.removeHandler(said)


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_the_line_of_the_readme(family: str, breaks: Said) -> None:
    """A direct call with pixels, and generate: nothing changes where nothing is dropped, and K tokens stay below."""
    model, inputs = build(family), prompt(family, frames=FRAMES)
    expected, ids = logits(model, inputs), generate(model, inputs).sequences
    counters["graph_break"].clear()
    opt = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 1.0, "segments": 1})
    torch.testing.assert_close(logits(opt, inputs), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(generate(opt, inputs).sequences, ids)
    assert rewritten() == [True, True]  # generate hands in a cache, a direct call does not
    assert len(rewritten("decode")) == 1

    opt = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.5})
    dropped = FRAMES * CELLS[family] - (FRAMES * CELLS[family] + (family == "llava_onevision")) // 2
    dropped += family == "llava_onevision"
    out = generate(opt, inputs, 1)
    assert held(out.past_key_values) == [inputs["input_ids"].shape[1] - dropped] * LAYERS
    assert (rewritten(), len(segmo.last_report().graphs)) == ([True], 1)
    assert (breaks.lines, dict(counters["graph_break"])) == ([], {})  # nor does the vision tower speak of any
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=0)  # the model itself is as it was
    assert held(generate(model, inputs).past_key_values) == [inputs["input_ids"].shape[1] + 2] * LAYERS


WAYS = {
    "dynamic=None": (whole, {}),
    "dynamic=False": (whole, {"dynamic": False}),
    "in place, dynamic=None, fullgraph": (in_place, {"fullgraph": True}),
    "forward": (forward, {"dynamic": True}),
}


@functools.cache
def by_segmo_compile() -> tuple[torch.Tensor, torch.Tensor]:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=FRAMES)
    segmo.compile(model, keep=0.5)
    return logits(model, inputs), generate(model, inputs, 2).sequences


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_gives_the_same(way: str) -> None:
    expected, tokens = by_segmo_compile()
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=FRAMES)
    compile_, how = WAYS[way]
    compiled = compile_(model, **how, options={"keep": 0.5})
    torch.testing.assert_close(logits(compiled, inputs), expected, rtol=1e-4, atol=1e-5)
    assert rewritten() == [True]
    out = generate(compiled, inputs, 2)
    assert torch.equal(out.sequences, tokens)
    assert held(out.past_key_values) == [inputs["input_ids"].shape[1] - 12 + 1] * LAYERS
    assert set(rewritten()) == {True}


def test_forward_by_its_name_is_compiled_as_torch_has_it() -> None:
    """``forward`` of a model that was compiled in place is the model's own; that of what torch.compile gives is not."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    with torch.no_grad():
        expected = model(**inputs).logits
        segmo.compile(model, keep=0.5)
        assert torch.equal(model.forward(**inputs).logits, expected)
        cut = model(**inputs).logits
        assert cut.isnan().any()
        opt = torch.compile(segmo.uncompile(model), backend="segmo", options={"keep": 0.5})
        torch.testing.assert_close(opt.forward(**inputs).logits, cut, equal_nan=True)


def test_a_mode_is_inductor_s_and_the_defaults_hold() -> None:
    """torch takes a mode or options, not both."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=8)
    opt = torch.compile(model, backend="segmo", dynamic=True, mode="reduce-overhead")
    out = generate(opt, inputs)
    assert held(out.past_key_values) == [inputs["input_ids"].shape[1] - 24 + 2] * LAYERS


def test_two_compilations_of_one_model_and_one_in_place() -> None:
    """Each keeps to its own options, whichever runs last."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=8)
    half = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.5})
    quarter = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.25})
    model.compile(backend="segmo", dynamic=True, options={"keep": 0.75})
    length = inputs["input_ids"].shape[1]
    for compiled, kept in ((half, 16), (quarter, 8), (model, 24), (half, 16)):
        assert held(generate(compiled, inputs, 1).past_key_values) == [length - 32 + kept] * LAYERS
    segmo.uncompile(model)
    assert held(generate(model, inputs, 1).past_key_values) == [length] * LAYERS
    assert held(generate(quarter, inputs, 1).past_key_values) == [length - 24] * LAYERS


def test_frames_are_chosen_for_what_was_compiled_alone() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=8)
    expected = generate(model, inputs).sequences
    opt = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.5, "frames": 0.5})
    generate(opt, inputs)
    counts = segmo.last_report().frames
    assert counts is not None
    assert len(counts.kept[0]) == 4
    assert torch.equal(generate(model, inputs).sequences, expected)
    segmo.compile(model, keep=0.5, frames=0.5)
    assert torch.equal(generate(model, inputs).sequences, generate(opt, inputs).sequences)
    with pytest.raises(OptionError, match="forward alone"):
        torch.compile(model.forward, backend="segmo", options={"frames": 0.5})


def test_an_other_backend_sees_nothing_of_this_one() -> None:
    """Importing the backend used to make this call crash in the vision tower."""
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=FRAMES)
    import segmo.calls.backend  # noqa: F401

    expected = logits(model, inputs)
    torch.testing.assert_close(logits(torch.compile(model, backend="eager"), inputs), expected, rtol=1e-4, atol=1e-5)
    assert counters["graph_break"], "so they are counted where there are some"
    assert not torch._dynamo.config.capture_scalar_outputs
    assert type(torch.compile(model, backend="eager")) is torch._dynamo.OptimizedModule


def test_a_function_around_a_model_is_not_seen_through_and_says_so() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=FRAMES)
    expected = logits(model, inputs)

    @torch.compile(backend="segmo", options={"keep": 0.5})
    def step(**inputs: Any) -> Any:
        return model(**inputs).logits[:, -1:]

    with torch.no_grad(), pytest.warns(UserWarning, match=r"segmo\.compile\(model\)"):
        torch.testing.assert_close(step(**inputs), expected, rtol=1e-4, atol=1e-5)


def test_inside_of_another_compiled_function_it_compiles_for_itself() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=FRAMES)
    segmo.compile(model, keep=0.5)
    expected = logits(model, inputs)

    @torch.compile(backend="eager")
    def step(inputs: Any) -> Any:
        return model(**inputs, logits_to_keep=1).logits * 2

    with torch.no_grad():
        torch.testing.assert_close(step(inputs), expected * 2, rtol=1e-4, atol=1e-5)


def test_copies_and_pickles_are_compiled_too() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=8)
    opt = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.5})
    segmo.compile(model, keep=0.5, frames=0.5)
    expected = generate(model, inputs)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        with torch.no_grad():
            copied.lm_head.weight.neg_()  # a copy runs with its own weights
        out = generate(copied, inputs, 1)
        frames = segmo.last_report().frames
        assert frames is not None
        assert len(frames.kept[0]) == 4
        assert held(out.past_key_values) == [inputs["input_ids"].shape[1] - 16] * LAYERS
        assert not torch.equal(out.sequences[:, -1], expected.sequences[:, -3])
        assert torch.equal(generate(segmo.uncompile(copied), inputs, 1).sequences[:, :-1], inputs["input_ids"])
        assert held(generate(copied, inputs, 1).past_key_values) == [inputs["input_ids"].shape[1]] * LAYERS
    for copied in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert held(generate(copied, inputs, 1).past_key_values) == [inputs["input_ids"].shape[1] - 16] * LAYERS
    model.forward = torch.compile(segmo.uncompile(model).forward, backend="segmo")
    with pytest.raises(CompileError, match="cannot be copied"):
        copy.deepcopy(model)


@pytest.mark.skipif(
    "recompile_limit" not in inspect.signature(torch.compile).parameters, reason="this torch.compile takes no limit"
)
def test_more_graphs_than_there_is_room_for_is_an_error_and_no_eager_run() -> None:
    model = build("qwen2_vl")
    opt = torch.compile(model, backend="segmo", dynamic=False, recompile_limit=2, options={"keep": 0.5})
    logits(opt, prompt("qwen2_vl", frames=4))
    logits(opt, prompt("qwen2_vl", frames=6))
    with pytest.raises(CompileError, match="dynamic=True"):
        logits(opt, prompt("qwen2_vl", frames=8))
    logits(opt, prompt("qwen2_vl", frames=4))


LEFT_ALONE: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "stance": (lambda: torch.compiler.set_stance("force_eager"), r"set_stance\(\"force_eager\"\)"),
    "config": (lambda: torch._dynamo.config.patch(disable=True), "TORCH_COMPILE_DISABLE=1"),
    "mode": (lambda: FlopCounterMode(display=False), "FlopCounterMode"),
}


@pytest.mark.parametrize(
    ("name", "before"), [("stance", False), ("stance", True), ("mode", False), ("mode", True), ("config", False)]
)
def test_a_call_that_torch_leaves_alone_is_told(name: str, before: bool) -> None:
    """torch.compile says nothing of it, and the model would run whole."""
    left_alone, why = LEFT_ALONE[name]
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=FRAMES)
    expected = logits(model, inputs)
    segmo.compile(model, keep=0.5)
    if before:
        logits(model, inputs)
    with left_alone(), pytest.warns(UserWarning, match=f"ran the call as it was: .*{why}"):
        assert torch.equal(logits(model, inputs), expected)
    segmo.compile(model, keep=0.5, strict=True)
    with left_alone(), pytest.raises(NotRewrittenError, match=why):
        logits(model, inputs)
    with left_alone(), torch.no_grad():  # nothing is lost where there is no video
        model(input_ids=torch.tensor([[1, 2, 3]]))
    if name != "config":  # by that Dynamo gives functions up for good
        assert not torch.equal(logits(model, inputs), expected)
        assert any(rewritten())


def test_frames_that_were_left_out_are_not_read_where_torch_leaves_a_call_alone() -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=FRAMES)
    segmo.compile(model, keep=0.25, frames=0.5)
    with torch.compiler.set_stance("force_eager"), pytest.raises(NotRewrittenError, match="frames were left out"):
        logits(model, inputs)


def test_torch_compile_that_is_switched_off_for_the_process_is_told() -> None:
    program = (
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        "import segmo\ntry:\n segmo.compile\nexcept UserWarning as warning:\n print(warning)"
    )
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "TORCHDYNAMO_DISABLE=1 switches torch.compile off" in said.stdout


@pytest.mark.parametrize("first", ["eager", "segmo"])
def test_what_was_compiled_before_is_compiled_anew(first: str) -> None:
    inputs = prompt("qwen2_vl", frames=FRAMES)
    before = torch.compile(build("qwen2_vl"), backend=first)
    after = torch.compile(before, backend="segmo", options={"keep": 0.5, "segments": 2})
    wanted = logits(segmo.compile(build("qwen2_vl"), keep=0.5, segments=2), inputs)
    torch.testing.assert_close(logits(after, inputs), wanted)
