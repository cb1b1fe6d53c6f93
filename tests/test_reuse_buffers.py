"""In-place arithmetic: the same numbers, and no memory overwritten that somebody still reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, prompt
from torch.fx import symbolic_trace

import segmo
from segmo.passes.analyse import Facts, Merge
from segmo.passes.base import Rewrite
from segmo.passes.reuse_buffers import ReuseBuffers

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def record(name: str = "reuse-buffers") -> Any:
    graph = next(graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    return next(record for record in graph.passes if record.name == name)


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_the_numbers_are_the_same_to_the_bit(family: str) -> None:
    model, inputs = build(family), prompt(family)
    logits = []
    for disable in ((), ("reuse-buffers",)):
        torch._dynamo.reset()
        segmo.compile(model, keep=0.5, segments=2, disable=disable)
        with torch.no_grad():
            logits.append(model(**inputs, logits_to_keep=1).logits)
        if not disable:
            assert record().matches > 5
            assert record().text_after.count("inplace = True") == 3
    assert torch.equal(*logits)


def test_with_gradients_nothing_is_overwritten() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=1.0, segments=1)
    model(**inputs).logits.sum().backward()
    assert [miss.code for miss in record().misses] == ["gradients"]
    assert model.lm_head.weight.grad.abs().sum() > 0


OPERATIONS = ("mul", "add", "silu", "linear", "view")


@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=14)
)
def test_any_program_gives_the_same(steps: list[tuple[str, int, int]]) -> None:
    """Random straight-line programs with shared operands and views, all of whose values count."""
    weight = torch.linspace(-1, 1, 16).view(4, 4)

    def program(x: torch.Tensor) -> Any:
        values = [torch._C._nn.linear(x, weight)]
        for name, left, right in steps:
            a, b = values[left % len(values)], values[right % len(values)]
            if name == "mul":
                values.append(a * b)
            elif name == "add":
                values.append(a + b)
            elif name == "silu":
                values.append(torch.nn.functional.silu(a))
            elif name == "linear":
                values.append(torch._C._nn.linear(a, weight))
            else:
                values.append(a.view(4, 4))
        return values[-1], values[len(values) // 2]

    x = torch.linspace(-1, 1, 16).view(4, 4)
    expected = program(x)
    gm = symbolic_trace(program)
    with torch.no_grad():
        for node in gm.graph.nodes:  # every value of these programs has one shape
            node.meta["example_value"] = torch.empty(4, 4)
        merge = next(iter(gm.graph.nodes))
        rewrite = Rewrite(gm.graph, Facts("prefill", merge=Merge(merge, merge, merge, None)), segmo.Options())
        ReuseBuffers().run(rewrite)
    gm.recompile()
    torch.testing.assert_close(gm(x), expected, rtol=0, atol=0)
