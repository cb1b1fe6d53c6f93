"""In-place arithmetic: the same numbers, and no memory overwritten that somebody still reads."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from models import build, prompt
from torch.fx import Graph, GraphModule, Node

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
    for disable in (("tile-rows",), ("tile-rows", "reuse-buffers")):
        torch._dynamo.reset()
        segmo.compile(model, keep=0.5, segments=2, disable=disable)
        with torch.no_grad():
            logits.append(model(**inputs, logits_to_keep=1).logits)
        if len(disable) == 1:
            assert record().matches > 5
            assert record().text_after.count("inplace = True") == 3
    assert torch.equal(*logits)


def test_with_gradients_nothing_is_overwritten() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=1.0, segments=1)
    model(**inputs).logits.sum().backward()
    assert [miss.code for miss in record().misses] == ["gradients"]
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_later_layers_take_the_memory_of_the_first() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5, segments=2, disable="tile-rows")
    with torch.no_grad():
        model(**inputs, logits_to_keep=1)
    refilled = [line for line in record().text_after.splitlines() if "linear_into(" in line]
    assert any("up_proj" in line for line in refilled)
    assert not any("layers_modules_0_modules_mlp_modules_up_proj" in line for line in refilled)
    assert "scatter_rows_(" in record().text_after


LINEAR = torch._C._nn.linear
WEIGHTS = {"narrow": torch.linspace(-1, 1, 24).view(3, 8), "widen": torch.linspace(-1, 1, 24).view(8, 3)}
ROWS = torch.tensor([[True], [False], [True]])[None]
ONE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "silu": (torch.nn.functional.silu, ()),
    "in place": (torch.nn.functional.silu, (True,)),
    "neg": (operator.neg, ()),
    "narrow": (LINEAR, (WEIGHTS["narrow"],)),
    "widen": (LINEAR, (WEIGHTS["widen"],)),
    "cat": (torch.cat, ()),
    "view": ("view", (1, 3, -1)),
    "change": ("mul_", (0.5,)),
    "double": ("to", (torch.float64,)),
    "single": ("to", (torch.float32,)),  # the same tensor, if it is that already
    "pow": ("pow", (2,)),
    "mean": ("mean", (-1, True)),
}
TWO = {"mul": operator.mul, "add": operator.add, "scatter": "masked_scatter"}


class Program:
    """A straight-line program, as a graph and, call by call, as what eager PyTorch makes of it."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.nodes: list[Node] = []
        self.values: list[torch.Tensor] = []
        x = torch.linspace(-1, 1, 24).view(1, 3, 8)
        self.root = torch.nn.Module()
        self.root.register_buffer("x", x)
        self._note(self.graph.get_attr("x"), x)

    def _note(self, node: Node, value: torch.Tensor) -> None:
        node.meta["example_value"] = torch.empty_like(value)
        self.nodes.append(node)
        self.values.append(value)

    def _constant(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["example_value"] = torch.empty_like(value)
        return node

    def call(self, target: Any, operands: list[int], rest: tuple[Any, ...] = ()) -> None:
        """A call of values by their numbers, with what else it needs."""
        listed = target is torch.cat
        given = [self.values[each] for each in operands]
        nodes: list[Any] = [self.nodes[each] for each in operands]
        middle = (ROWS,) if target == "masked_scatter" else ()
        function = getattr(torch.Tensor, target) if isinstance(target, str) else target
        value = function(given) if listed else function(given[0], *middle, *given[1:], *rest)
        arguments = (
            (nodes,) if listed else (nodes[0], *map(self._constant, (*middle,)), *nodes[1:], *map(self._constant, rest))
        )
        make = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        self._note(make(target, tuple(arguments)), value)

    def step(self, name: str, left: int, right: int) -> None:
        """A call of some values that it can take."""
        if name in ONE:
            target, rest = ONE[name]
            wanted = rest[0] if target is LINEAR else None
            fitting = [
                at for at, x in enumerate(self.values)
                if wanted is None or (x.shape[-1], x.dtype) == (wanted.shape[1], wanted.dtype)
            ]  # fmt: skip
            if name not in ("change", "in place") or left % len(fitting):  # the program's input stays
                self.call(target, [fitting[left % len(fitting)]], rest)
            return
        first = left % len(self.values)
        a = self.values[first]
        alike = [at for at, x in enumerate(self.values) if (x.shape, x.dtype) == (a.shape, a.dtype)]
        self.call(TWO[name], [first, alike[right % len(alike)]])


@given(
    st.lists(st.tuples(st.sampled_from([*ONE, *TWO]), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=20)
)
@example([("single", 2, 0), ("mul", 3, 0)])  # a conversion that converts nothing
@example([("in place", 1, 0), ("silu", 3, 0)])  # an activation that the model has in place
def test_any_program_gives_the_same(steps: list[tuple[str, int, int]]) -> None:
    """Random programs with shared operands, views and changes in place; the last value and one in the middle count."""
    program = Program()
    with torch.no_grad():
        program.call(LINEAR, [0], (WEIGHTS["narrow"],))
        program.call(LINEAR, [1], (WEIGHTS["widen"],))
        for each in steps:
            program.step(*each)
        kept = (-1, len(program.nodes) // 2)
        program.graph.output(tuple(program.nodes[each] for each in kept))
        merge = program.nodes[0]
        facts = Facts("prefill", merge=Merge(merge, merge, merge, None))
        ReuseBuffers().run(Rewrite(program.graph, facts, segmo.Options()))
        found = GraphModule(program.root, program.graph)()
    torch.testing.assert_close(found, tuple(program.values[each] for each in kept), rtol=0, atol=0)
