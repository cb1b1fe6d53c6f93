"""Tiles of rows: the same numbers, whatever stands between attentions, and only where rows are computed apart."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from video_families import build, expect_family, prompt

import segmo
from segmo.errors import PipelineError
from segmo.passes import tile_rows
from segmo.passes.analyse import Facts, Merge
from segmo.passes.base import Rewrite
from segmo.passes.pipeline import DEFAULT
from segmo.passes.reuse_buffers import ReuseBuffers
from segmo.passes.row_axes import follow
from segmo.passes.tile_rows import TileRows
from segmo.runtime.row_tiles import ROWS, in_row_tiles
from segmo.runtime.row_tiles import tile_rows as rows_of_a_tile

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

TILED = DEFAULT.replace("tile-rows", "tile-rows{rows=8}")
F = torch.nn.functional
LINEAR = torch._C._nn.linear
NARROW, WIDEN = torch.linspace(-1, 1, 24).view(6, 4), torch.linspace(-1, 1, 24).view(4, 6)
LIKE = torch.linspace(-1, 1, 28).view(1, 7, 4)

# Calls of one value; of the second kind those in which rows meet, or memory is changed.
APART: dict[str, tuple[Any, ...]] = {
    "narrow": (LINEAR, NARROW),
    "widen": (LINEAR, WIDEN),
    "silu": (F.silu,),
    "double": ("to", torch.float64),
    "single": ("to", torch.float32),
    "shift": (operator.add, torch.linspace(-1, 1, 4)),
    "scale": (operator.mul, 1.5),
    "beside": (operator.add, LIKE),
    "mean": ("mean", -1, True),
    "sum": ("sum", -1),
    "sums": ("sum", (-2, -1)),
    "softmax": (torch.softmax, -1),
    "norm": (F.layer_norm, (4,)),
    "heads": ("view", 1, 7, 2, -1),
    "joined": ("reshape", 1, 7, -1),
    "flat": ("reshape", -1, 4),
    "flatten": ("flatten", 0, 1),
    "unflatten": ("unflatten", -1, (2, -1)),
    "unsqueeze": ("unsqueeze", 1),
    "last": ("unsqueeze", -1),
    "transpose": ("transpose", 1, 2),
    "permute": ("permute", 0, 2, 1),
    "contiguous": ("contiguous",),
    "half": (operator.getitem, (Ellipsis, slice(None, 2))),
    "one": (operator.getitem, (slice(None), slice(None), 0)),
    "new": (operator.getitem, (slice(None), None)),
    "chunk": ("chunk", 2, -1),
    "unbind": ("unbind", 0),
    "first": (operator.getitem, 0),
}
TOGETHER: dict[str, tuple[Any, ...]] = {
    "mean of rows": ("mean", 1, True),
    "softmax of rows": (torch.softmax, 1),
    "cumsum": ("cumsum", 1),
    "flip": ("flip", 1),
    "roll": (torch.roll, 1, 1),
    "some rows": (operator.getitem, (slice(None), slice(1, None))),
    "every other row": (operator.getitem, (slice(None), slice(None, None, 2))),
    "one row": (operator.getitem, (slice(None), 0)),
    "mixed": ("reshape", 1, 4, -1),
    "norm of rows": (F.layer_norm, (7, 4)),
    "changed": ("mul_", 0.5),
    "written": (operator.setitem, (slice(None), 2), 0.25),
}
# Of the third kind those that give another name for the same memory, by ways that have no rule, and write through it.
HIDDEN: dict[str, tuple[Any, ...]] = {
    "select": ("select", 2, 0),
    "narrow": (torch.narrow, 2, 0, 1),
    "swapped": ("swapaxes", 1, 2),
    "moved": ("movedim", 1, 0),
    "diagonal": ("diagonal", 0, 1, 2),
    "turned": (getattr, "mT"),
    "data": (getattr, "data"),
    "kept": (F.dropout, 0.5, False),
    "rectified": (F.relu, True),
    "activated": (F.silu, True),
    "same": ("double",),
    "flags": ("requires_grad_", False),
}
EVERY = {**APART, **TOGETHER, **HIDDEN}
TWO = {"add": operator.add, "mul": operator.mul, "cat": -1, "cat of rows": 1, "copy": "copy_"}


class Program:
    """A straight-line program, as a graph and, call by call, as what eager PyTorch makes of it."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.root = torch.nn.Module()
        self.nodes: list[Node] = []
        self.values: list[Any] = []
        self.x = torch.linspace(-2, 2, 28).view(1, 7, 4)
        self._note(self.graph.placeholder("x"), self.x.clone())

    def _note(self, node: Node, value: Any) -> None:
        node.meta["example_value"] = torch.utils._pytree.tree_map_only(Tensor, torch.empty_like, value)
        self.nodes.append(node)
        self.values.append(value)

    def _constant(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["example_value"] = torch.empty_like(value)
        return node

    def call(self, target: Any, operands: list[int], rest: tuple[Any, ...] = (), listed: bool = False) -> None:
        """A call of values by their numbers; none where eager PyTorch refuses it."""
        function: Callable[..., Any] = getattr(Tensor, target) if isinstance(target, str) else target
        given = [self.values[each] for each in operands]
        try:
            value = function(given, *rest) if listed else function(*given, *rest)
        except (RuntimeError, IndexError, TypeError, AttributeError):
            return
        nodes: Any = [self.nodes[each] for each in operands]
        make = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        node = make(target, ((nodes,) if listed else tuple(nodes)) + tuple(map(self._constant, rest)))
        if value is not None:
            self._note(node, value)

    def step(self, name: str, left: int, right: int) -> None:
        """A call of some values."""
        first, second = left % len(self.values), right % len(self.values)
        if name in TWO:
            joined = isinstance(TWO[name], int)
            target = torch.cat if joined else TWO[name]
            self.call(target, [first, second], (TWO[name],) if joined else (), listed=joined)
            return
        if name == "for each":
            self.call(torch._foreach_add_, [first, second], (1.0,), listed=True)
            return
        target, *rest = EVERY[name]
        self.call(target, [first], tuple(rest))

    def run(self, outputs: tuple[int, ...]) -> tuple[tuple[Any, ...], int]:
        """What the graph gives in tiles of three rows, and how many stretches it has."""
        nodes = [self.nodes[each] for each in outputs if isinstance(self.values[each], Tensor)]
        self.graph.output(tuple(nodes))
        merge = self.nodes[0]
        gm = GraphModule(self.root, self.graph)
        rewrite = Rewrite(gm.graph, Facts("prefill", merge=Merge(merge, merge, merge, None)), segmo.Options())
        with mock.patch.object(tile_rows, "_WORTH", 0):
            stretches = TileRows(rows=3).run(rewrite).matches
        ReuseBuffers().run(rewrite)
        gm.graph.lint()
        gm.recompile()
        return gm(self.x.clone()), stretches


NAMES = [*APART, *APART, *TOGETHER, *HIDDEN, *TWO, "for each", "changed", "written"]
STEPS = st.tuples(st.sampled_from(NAMES), st.integers(0, 99), st.integers(0, 99))


@settings(max_examples=300)
@given(st.lists(STEPS, min_size=1, max_size=20), st.integers(0, 99))
@example([("changed", 0, 0), ("silu", 0, 0)], 0)
@example([("heads", 0, 0), ("changed", 1, 0), ("silu", 0, 0)], 0)
@example([("silu", 0, 0), ("transpose", 1, 0), ("copy", 1, 0), ("scale", 2, 0)], 1)
@example([("silu", 0, 0), ("written", 0, 0), ("scale", 1, 0), ("scale", 0, 0)], 0)
def test_any_program_gives_the_same(steps: list[tuple[str, int, int]], other: int) -> None:
    """Random programs in which rows meet, or memory is shared and changed; the last value and another one count."""
    program = Program()
    with torch.no_grad():
        for each in steps:
            program.step(*each)
        outputs = (len(program.nodes) - 1, other % len(program.nodes))
        found, _ = program.run(outputs)
    wanted = tuple(program.values[each] for each in outputs if isinstance(program.values[each], Tensor))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*HIDDEN, "for each", "changed", "written"])
def test_a_write_stays_behind_what_was_read_before_it(name: str) -> None:
    """The program's input is changed, maybe through another name, between a call that reads it and the end."""
    program = Program()
    with torch.no_grad():
        for step in (("scale", 0, 0), ("silu", 1, 0), (name, 0, 0)):
            program.step(*step)
        if name in HIDDEN:
            program.step("changed", len(program.nodes) - 1, 0)
        program.step("shift", 2, 0)
        found, _ = program.run((len(program.nodes) - 1,))
    torch.testing.assert_close(found, (program.values[-1],), rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", ["shift", "silu"])
def test_a_write_to_a_result_shows_in_its_other_names(first: str) -> None:
    """Of what a stretch computes, and of what it was handed."""
    program = Program()
    with torch.no_grad():
        for step in ((first, 0, 0), ("half", 0 if first == "shift" else 1, 0), ("changed", 2, 0), ("scale", 1, 0)):
            program.step(*step)
        outputs = tuple(range(len(program.nodes)))
        found, _ = program.run(outputs)
    wanted = tuple(program.values[each] for each in outputs)
    torch.testing.assert_close(found[1:], wanted[1:], rtol=0, atol=1e-6)


def test_an_operand_that_is_read_in_two_ways_is_read_in_each() -> None:
    """A square tensor that is laid over the rows, and then multiplies them."""
    square = torch.linspace(-1, 1, 49).view(7, 7)
    for steps in (((operator.mul, [1, 0]), (LINEAR, [2, 0])), ((LINEAR, [1, 0]), (operator.add, [2, 0]))):
        program = Program()
        program.x = square.clone()
        program.values[0], program.nodes[0].meta["example_value"] = square.clone(), torch.empty_like(square)
        with torch.no_grad():
            program.call(torch.cumsum, [0], (0,))  # a second tensor
            program.nodes[0], program.nodes[1] = program.nodes[1], program.nodes[0]
            program.values[0], program.values[1] = program.values[1], program.values[0]
            for target, operands in steps:
                program.call(target, operands)
            merge = program.nodes[1]
            program.nodes.insert(0, merge)
            program.values.insert(0, program.values[1])
            found, _ = program.run((len(program.nodes) - 1,))
        torch.testing.assert_close(found, (program.values[-1],), rtol=0, atol=1e-5)


class Adapter(torch.nn.Module):
    """Beside a layer's MLP, with a convolution, an activation in place, and other shapes than transformers' own."""

    def __init__(self, mlp: torch.nn.Module, hidden: int) -> None:
        super().__init__()
        self.mlp, self.down, self.up = mlp, torch.nn.Linear(hidden, 16), torch.nn.Linear(16, hidden)
        self.mix, self.gate = torch.nn.Conv1d(16, 16, 3, padding=1), torch.nn.Linear(16, 16)
        self.act, self.drop = torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.5)
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, hidden))

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, hidden = x.shape
        a = self.down(x)
        mixed = self.mix(a.transpose(1, 2)).transpose(1, 2)
        gate, b = torch.sigmoid(self.gate(a)), self.drop(a)
        b += mixed
        share = torch.sigmoid(F.linear(x.view(-1, hidden), self.weight)).view(batch, rows, 1)
        flat = self.mlp(x.flatten(0, 1)).unflatten(0, (batch, rows))
        return flat * share + self.up(gate * self.act(a) + mixed)


def test_layers_of_the_user_s_own() -> None:
    model, inputs = build("qwen2_5_vl", rounds=2), prompt("qwen2_5_vl")
    torch.manual_seed(0)
    for layer in model.model.language_model.layers:
        layer.mlp = Adapter(layer.mlp, model.config.text_config.hidden_size)
    model.eval()
    logits = []
    for options in ({"disable": ["tile-rows"]}, {"pipeline": TILED}):
        torch._dynamo.reset()
        segmo.compile(model, keep=1.0, segments=2, **options)
        with torch.no_grad():
            logits.append(model(**inputs, logits_to_keep=1).logits)
    assert record().matches
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


def test_keys_and_values_that_no_cache_keeps_are_still_not_copied() -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl")
    segmo.compile(model, keep=1.0, segments=1)
    with torch.no_grad():
        model(**inputs, use_cache=False, logits_to_keep=1)
    assert record("group-heads").matches > 0


@given(st.sampled_from([*APART, *TOGETHER]), st.integers(0, 6))
def test_a_row_that_is_followed_depends_on_no_other(name: str, row: int) -> None:
    """What a rule says is held against what changes in the result if one row of the operand does."""
    target, *rest = {**APART, **TOGETHER}[name]
    program = Program()
    x = program.x[..., :6] if rest and rest[0] is WIDEN else program.x
    x = torch.cat([x, x[..., :2]], -1) if name == "widen" else x
    program.values[0], program.nodes[0].meta["example_value"] = x.clone(), torch.empty_like(x)
    program.call(target, [0], tuple(rest))
    node = program.nodes[-1]
    found = follow(node, {program.nodes[0]: -2}) if len(program.nodes) > 1 else None
    assert found is None or name not in TOGETHER
    if found is None:
        return
    function = getattr(Tensor, target) if isinstance(target, str) else target
    other = x.clone()
    other[:, row] += 1
    axes = found.axis if isinstance(found.axis, tuple) else (found.axis,)
    before, after = (function(each, *rest) for each in (x, other))
    for one, two, axis in zip(
        *((each,) if isinstance(each, Tensor) else each for each in (before, after)), axes, strict=True
    ):
        changed = (one != two).transpose(axis, 0).flatten(1).any(1)
        assert one.shape[axis] == 7
        assert set(changed.nonzero().flatten().tolist()) <= {row}


FOLLOWED = set(APART) - {"first", "sums", "widen"}


@pytest.mark.parametrize("name", sorted(FOLLOWED))
def test_what_keeps_rows_apart_is_followed(name: str) -> None:
    target, *rest = APART[name]
    program = Program()
    program.call(target, [0], tuple(rest))
    assert follow(program.nodes[-1], {program.nodes[0]: -2}) is not None


@given(
    st.integers(1, 40), st.integers(1, 9), st.sampled_from([(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3)]), st.booleans()
)
def test_tiles_equal_the_whole(count: int, rows: int, order: tuple[int, ...], narrow: bool) -> None:
    """Of any number of rows, whatever lies where; what has one row is the same for all of them."""
    x = torch.randn(2, 3, count, 4).permute(order).contiguous().permute(sorted(range(4), key=order.__getitem__))
    y = torch.randn(2, 1, 1 if narrow else count, 4)

    def body(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return (x * y + scale).transpose(1, 2), x.mean(-1)

    wanted = body(x, y, 2.0)
    found = in_row_tiles(body, (-2, -2, None), (-3, -1), rows, x, y, 2.0)
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)
        if count > 1 < rows:
            assert one.stride() == two.stride()


def test_what_has_other_rows_than_was_traced_is_run_whole() -> None:
    """A result of one row, or operands of several lengths, which a later call may bring."""
    x, y = torch.randn(8, 4), torch.randn(5, 4)
    (one,) = in_row_tiles(lambda x: (x[:1] * 2,), (-2,), (-2,), 2, x)
    assert torch.equal(one, x[:1] * 2)
    found = in_row_tiles(lambda x, y: (x * 2, y * 2), (-2, -2), (-2, -2), 2, x, y)
    assert [len(each) for each in found] == [8, 5]


def test_a_machine_of_many_cores_has_larger_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_of_a_tile() >= ROWS
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert rows_of_a_tile() == 32 * ROWS


def record(name: str = "tile-rows") -> Any:
    graph = next(graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    return next(record for record in graph.passes if record.name == name)


# Stretches of two layers of each kind; between them features are added, or experts or linear attention stand there.
STRETCHES = {"qwen2_5_vl": 4, "qwen3_vl": 6, "qwen3_5": 4, "gemma4": 2, "smolvlm": 4, "lfm3_vl": 5, "minimax_m3_vl": 7}


@pytest.mark.parametrize("family", sorted(STRETCHES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_answer_the_same_to_the_bit(family: str, dtype: torch.dtype) -> None:
    expect_family(family)
    model = build(family, dtype, rounds=1 if family == "gemma4" else 2)
    inputs = {name: x.to(dtype) if torch.is_floating_point(x) else x for name, x in prompt(family).items()}
    results = []
    for options in ({"disable": ["tile-rows"]}, {"pipeline": TILED}):
        torch._dynamo.reset()
        segmo.compile(model, keep=0.5, segments=2, **options)
        with torch.no_grad():
            results.append(model(**inputs, logits_to_keep=1))
    assert record().matches == STRETCHES[family]
    assert segmo.last_report().prefill.index.shape[1] >= 2 * 8
    wanted, found = results
    assert torch.equal(found.logits, wanted.logits)
    for one, two in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
        if getattr(one, "keys", None) is not None:
            assert torch.equal(one.keys, two.keys)
            assert torch.equal(one.values, two.values)


def test_layers_of_a_kind_share_one_body_and_the_report_says_so() -> None:
    model = build("qwen2_5_vl", rounds=6)
    segmo.compile(model, keep=0.5, segments=2)
    with torch.no_grad():
        model(**prompt("qwen2_5_vl"), logits_to_keep=1)
    text = record().text_after
    assert text.count("class row_tiles_") == 2
    assert text.count("= self.row_tiles_1") == record().matches - 1 > 2
    in_place = record("reuse-buffers")
    assert ("inplace = True" in in_place.text_before, in_place.text_after.count("inplace = True")) == (False, 2)
    rows = f"{rows_of_a_tile():,}"
    assert f"stretches between attentions, in tiles of {rows} rows" in str(segmo.last_report())


def test_with_gradients_or_by_inductor_nothing_is_tiled() -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl")
    segmo.compile(model, keep=1.0, segments=1)
    model(**inputs).logits.sum().backward()
    assert [miss.code for miss in record().misses] == ["gradients"]
    torch._dynamo.reset()
    segmo.compile(model, keep=0.5, lowering="inductor")
    with torch.no_grad():
        model(**inputs, logits_to_keep=1)
    assert [miss.code for miss in record().misses] == ["own-buffers"]


@pytest.mark.parametrize("rows", ["-1", "1.5", "True", "many"])
def test_rows_that_cannot_be_are_refused(rows: str) -> None:
    with pytest.raises(PipelineError, match=r"'tile-rows': rows is .*; it must be a whole number from 0 on"):
        segmo.compile(build("qwen2_5_vl"), pipeline=f"tile-rows{{rows={rows}}}")


def test_under_autocast_each_part_is_computed_in_the_dtype_of_its_place() -> None:
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl")
    logits = []
    for options in ({"disable": ["tile-rows"]}, {"pipeline": TILED}):
        torch._dynamo.reset()
        segmo.compile(model, keep=0.5, segments=2, **options)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits.append(model(**inputs, logits_to_keep=1).logits)
    assert record().matches
    assert torch.equal(*logits)
