"""``lower-kernels`` on captured graphs of tiny real models: every operator that has a generated kernel runs it,
in Triton's interpreter, and the answer is that of the CPU's implementations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from interpreter import interpret
from models import LAYERS, build, prompt

import segmo
from segmo.errors import CompileError
from segmo.passes.runner import PassRecord
from segmo.runtime.kernels.compact import payload_of
from segmo.runtime.layout import QUERY, SINK

TOLERANCE = 1e-5  # ||generated - CPU's|| / ||CPU's|| of fp32 logits


@dataclass(frozen=True)
class Answer:
    """What a compiled model gave: logits and greedy tokens, kept positions, and what lower-kernels did."""

    logits: torch.Tensor
    tokens: torch.Tensor
    index: torch.Tensor | None
    segment: torch.Tensor | None
    notes: tuple[str, ...]
    record: PassRecord

    @property
    def change(self) -> dict[str, int]:
        names = {*self.record.ops_before, *self.record.ops_after}
        deltas = {n: self.record.ops_after.get(n, 0) - self.record.ops_before.get(n, 0) for n in names}
        return {name: delta for name, delta in deltas.items() if delta}


def answer(family: str, frames: tuple[int, ...] = (6,), batch: int = 1, **options: Any) -> Answer:
    """The last of the prompts' answers, all through one compiled model."""
    torch._dynamo.reset()
    model = build(family)
    segmo.compile(model, **options)
    for count in frames:
        out = model.generate(
            **prompt(family, frames=count, batch=batch),
            max_new_tokens=2,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    report = segmo.last_report()
    assert report.prefill is not None
    record = next(one for one in report.graphs[0].passes if one.name == "lower-kernels")
    notes = report.graphs[0].notes
    return Answer(out.logits[0], out.sequences, report.prefill.index, report.prefill.segment, notes, record)


def check(generated: Answer, on_cpu: Answer) -> None:
    assert generated.index is not None
    assert on_cpu.index is not None
    assert torch.equal(generated.index, on_cpu.index)
    assert torch.equal(generated.tokens, on_cpu.tokens)
    assert (generated.logits - on_cpu.logits).norm() / on_cpu.logits.norm() < TOLERANCE


@pytest.mark.families("qwen2_vl", "qwen3_vl")
def test_a_prefill_on_generated_kernels_equals_the_cpu_s(family: str) -> None:
    """Two rows that keep other tokens of their own, two lengths of video through one graph."""
    options: dict[str, Any] = {"keep": 0.5, "segments": 2, "context": 1}
    case = {"frames": (4, 6), "batch": 2} if family == "qwen2_vl" else {}
    generated = interpret(answer, family, **case, **options, lowering="triton")
    check(generated, answer(family, **case, **options))
    # Embeddings, cos and sin follow the selection in one launch (deepstack has flags beside).
    assert generated.change["segmo.select_and_gather.default"] == 1
    assert generated.change["segmo.select_tokens.default"] == -1
    assert generated.change["segmo.gather_tokens.default"] <= -3
    assert generated.record.matches >= LAYERS + 1 + 6
    text = generated.record.text_after
    for op, count in {"segment_attention": LAYERS, "scan_video": 1, "scene_novelty": 1, "select_and_gather": 1}.items():
        assert len(re.findall(rf"segmo\.{op}\.default\([^\n]*'triton@[0-9a-f]{{16}}'", text)) == count, op
    for op in ("", "scan_video: ", "scene_novelty: ", r"select_tokens with \d gathers: "):
        pattern = rf"lower-kernels: {op}triton@[0-9a-f]{{16}}, because it was asked for"
        assert any(re.fullmatch(pattern, note) for note in generated.notes), op


def test_selection_at_a_layer_asks_the_question_kernel() -> None:
    """The cut is inside the decoder: queries, keys and values are gathered, and the caches of earlier layers."""
    options: dict[str, Any] = {"keep": 0.5, "segments": 2, "scorer": "attention", "layer": 1}
    generated = interpret(answer, "qwen2_5_vl", **options, lowering="triton")
    check(generated, answer("qwen2_5_vl", **options))
    assert generated.change["segmo.gather_tokens.default"] <= -3
    assert re.search(r"attention_relevance\.default\([^\n]*'triton@[0-9a-f]{16}'", generated.record.text_after)
    assert any(note.startswith("lower-kernels: attention_relevance: triton@") for note in generated.notes)


def test_selection_alone_is_lowered_too() -> None:
    options: dict[str, Any] = {"keep": 0.5, "segments": 1}
    generated = interpret(answer, "llava_onevision", **options, lowering="triton")
    check(generated, answer("llava_onevision", **options))
    assert generated.segment is None


@pytest.mark.slow
def test_inductor_compiles_the_rest_around_generated_kernels() -> None:
    """As on a GPU: operators with several results and symbolic sizes through AOT autograd and inductor."""
    options: dict[str, Any] = {"keep": 0.5, "segments": 2, "frames": (4, 6)}
    pipeline = "select-tokens,segment-attention,inject-context,lower-kernels{lowering=triton}"
    generated = interpret(answer, "qwen2_vl", **options, lowering="inductor", pipeline=pipeline)
    check(generated, answer("qwen2_vl", **options))
    assert generated.change["segmo.select_and_gather.default"] == 1


def test_the_cpu_s_choice_and_its_reason_are_noted() -> None:
    notes = answer("qwen2_vl", keep=0.5, segments=2).notes
    for op, name in (("", "flash"), ("scan_video: ", "torch"), ("select_tokens: ", "torch")):
        assert f"lower-kernels: {op}{name}, because the tensors are float32 on the CPU" in notes


@pytest.mark.usefixtures("fresh_dynamo")
def test_asked_for_where_there_is_no_kernel() -> None:
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5, lowering="triton")
    with pytest.raises(CompileError, match=r"lowering='triton' cannot be had: generated kernels need a CUDA"):
        model.generate(**prompt("qwen2_vl"), max_new_tokens=1)


FRAME = torch.tensor([[SINK, *sorted([*range(3)] * 4), QUERY, QUERY]] * 2)
CELL = torch.tensor([[-1, *[*range(4)] * 3, -1, -1]] * 2)
SCENE = FRAME.clamp(max=1)


def opcheck(name: str) -> dict[str, str]:
    """``torch.library.opcheck`` of an operator on its generated kernels. In the interpreter."""
    from segmo.runtime import ops, token_ops

    x, q, k = torch.randn(2, 15, 32), torch.randn(2, 4, 15, 16), torch.randn(2, 2, 15, 16)
    turned = torch.randn(2, 15, 2, 16).transpose(1, 2)  # strides as a model makes them
    payloads = [payload_of("x0", x.dtype, 1, 32), payload_of("x1", x.dtype, 2, 16)]
    chosen = (torch.rand(2, 15), FRAME, CELL, SCENE, torch.rand(2, 8), 24, 0.5, 0.5, None)
    cases: dict[str, tuple[Any, ...]] = {
        "scan_video": (x, FRAME, CELL, None, ops.scan_kernel(x)),
        "scene_novelty": (x, torch.rand(2, 15), FRAME, CELL, SCENE, None, ops.scan_kernel(x)),
        "attention_relevance": (q, k, SCENE, CELL, FRAME == QUERY, None, 0.25, 8, ops.question_kernel(q, k)),
        "select_and_gather": (*chosen, x, [x, turned], [1, 2], token_ops.selection_kernel(x.device, payloads)),
    }
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    return torch.library.opcheck(getattr(torch.ops.segmo, name).default, cases[name], test_utils=tests)


@pytest.mark.parametrize("name", ["scan_video", "scene_novelty", "attention_relevance", "select_and_gather"])
def test_operators_on_generated_kernels_are_well_formed(name: str) -> None:
    assert set(interpret(opcheck, name).values()) == {"SUCCESS"}
