"""One body for the layers of a kind: the same numbers, whatever is read of a layer and written between two."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
import video_families
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

import segmo
from segmo.compat.regions import regions
from segmo.compiler import lower
from segmo.passes import outline_layers
from segmo.passes.analyse import Facts
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.outline_layers import OutlineLayers
from segmo.passes.pipeline import DEFAULT
from segmo.passes.runner import observe

F = torch.nn.functional
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.skipif(regions is None, reason="regions need torch 2.14"),
]
ROUNDS = 4  # of each kind of layer


def answer(family: str, rounds: int = ROUNDS, **options: Any) -> Tensor:
    """Logits of a few tokens, by inductor."""
    torch._dynamo.reset()
    options = {"lowering": "inductor", **options}
    model = segmo.compile(video_families.build(family, rounds=rounds), keep=0.5, **options)
    out = model.generate(
        **video_families.prompt(family), max_new_tokens=3, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(out.logits)


def records(name: str = "outline-layers") -> dict[str, Any]:
    """By kind of graph."""
    found = segmo.last_report().graphs
    return {graph.kind: next(each for each in graph.passes if each.name == name) for graph in found}


@pytest.mark.slow
@pytest.mark.families("qwen3_vl")
def test_inductor_gives_the_same_with_one_body_as_with_each_layer(family: str) -> None:
    """Deepstack's rows are as many as the data say."""
    outlined = answer(family)
    found = records()
    graphs = segmo.last_report().graphs
    assert found["prefill"].matches >= ROUNDS
    assert found["decode"].matches >= ROUNDS
    assert all(graph.by_inductor for graph in graphs)
    torch.testing.assert_close(outlined, answer(family, disable="outline-layers"), rtol=1e-4, atol=1e-5)


@pytest.mark.families("minicpmv4_6", "molmo2", "kimi_k25", "nemotron_h_omni")
def test_graphs_with_bodies_compute_the_same(family: str) -> None:
    """All sorts of layers, without inductor's minutes: windows, experts, linear attention, Mamba, fused projections."""
    if family not in video_families.FAMILIES:
        pytest.skip("these transformers do not have it")
    with patch.object(lower, "compile_graph", lambda gm, *_: gm.forward):
        expected = answer(family, disable="outline-layers")
        assert torch.equal(answer(family), expected)
    assert records()["prefill"].matches > 1


def test_the_report_says_so_and_one_layer_is_in_the_graph_once() -> None:
    with patch.object(lower, "compile_graph", lambda gm, *_: gm.forward):
        answer("qwen2_vl")
    graph = segmo.last_report().graphs[0]
    (note,) = [note for note in graph.notes if note.startswith("outline-layers")]
    assert note == f"outline-layers: {2 * ROUNDS - 1} stretches between attentions are calls of one body"
    record = records()["prefill"]
    assert record.text_after.count("def forward") == 2
    assert record.ops_after["invoke_subgraph"] == record.matches
    # What is in a body counts each time that it is called.
    assert record.ops_after["linear"] == record.ops_before["linear"]


def test_where_nothing_is_compiled_there_are_no_bodies() -> None:
    model = segmo.compile(video_families.build("qwen2_vl", rounds=2), keep=0.5)
    inputs = video_families.prompt("qwen2_vl")
    with torch.no_grad():
        model(**inputs, logits_to_keep=1)
    (miss,) = records()["prefill"].misses
    assert (miss.code, miss.expected) == ("as-it-is", True)


@pytest.mark.slow
def test_where_inductor_fails_with_a_body_it_compiles_each_layer(capsys: pytest.CaptureFixture[str]) -> None:
    compiled, given = lower.compile_graph, list[int]()

    def refusing(gm: GraphModule, *rest: Any) -> Any:
        given.append(len(gm.graph.find_nodes(op="call_function", target=outline_layers.INVOKE)))
        if given[-1]:
            gm.graph.erase_node(gm.graph.output_node())  # inductor leaves a graph anyhow where it fails
            raise RuntimeError("no bodies today")
        return compiled(gm, *rest)

    with patch.object(lower, "compile_graph", refusing):
        found = answer("qwen2_vl")
    assert [count > 0 for count in given[:2]] == [True, False]
    why = "each layer, as it failed with one body for several: RuntimeError: no bodies today"
    assert f"inductor compiles {why}" in capsys.readouterr().err
    assert all(graph.by_inductor and why in graph.notes[-1] for graph in segmo.last_report().graphs)
    torch.testing.assert_close(found, answer("qwen2_vl", lowering="flash"), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sizes_that_are_numbers_are_part_of_a_body() -> None:
    model = segmo.compile(video_families.build("qwen2_vl", rounds=2), keep=0.5, lowering="inductor", dynamic=False)
    with torch.no_grad():
        model(**video_families.prompt("qwen2_vl"), logits_to_keep=1)
    (graph,) = (graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    assert records()["prefill"].matches == 3
    assert "each layer" not in graph.notes[-1]


SECOND = """
import sys, torch, video_families, segmo
from torch._dynamo.utils import counters

model = video_families.build("qwen2_vl", rounds=2)
for name, part in model.named_modules():
    if hasattr(part, "variance_epsilon"):
        part.variance_epsilon = float(sys.argv[1])
segmo.compile(model, keep=0.5, lowering="inductor")
inputs = video_families.prompt("qwen2_vl")
out = model.generate(**inputs, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True)
torch.save(torch.stack(out.logits), sys.argv[2])
print(counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"])
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_another_number_in_the_layers_is_another_graph(tmp_path: Path) -> None:
    """Torch keeps a graph on disk only if it can write down all that is in it, in its bodies too."""
    said, logits = [], []
    for number, epsilon in enumerate(("1e-6", "1e-6", "0.5")):
        file = tmp_path / f"{number}.pt"
        tests = str(Path(__file__).parent)
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": tests}
        done = subprocess.run(
            [sys.executable, "-c", SECOND, epsilon, str(file)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        said.append(done.stdout.split())
        logits.append(torch.load(file))
    assert said == [["0", "2"], ["2", "0"], ["0", "2"]]
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 1e-3


def test_inductor_s_prefill_is_traced_once() -> None:
    """An embedding's ``norm_type`` was an input, and a constant to inductor, which had all traced again."""
    runs = []
    with observe(lambda moment, each, gm: runs.append(each.name) if moment == "before" else None):
        answer("qwen2_vl", rounds=1, pipeline="select-tokens")
    assert runs == ["select-tokens"] * len(segmo.last_report().graphs)


def test_a_number_in_a_module_that_changes_is_noticed_and_then_an_input() -> None:
    model, inputs = video_families.build("qwen2_vl", rounds=2), video_families.prompt("qwen2_vl")
    norm = next(part for name, part in model.named_modules() if name.endswith("language_model.norm"))
    segmo.compile(model, keep=0.5)
    found = []
    with torch.no_grad():
        for epsilon in (1e-6, 0.5, 2.0, 4.0):
            norm.variance_epsilon = epsilon
            found.append(model(**inputs, logits_to_keep=1).logits)
            graphs = [graph for graph in segmo.last_report().graphs if graph.kind == "prefill"]
    assert len(graphs) == 2
    # All logits shrink as the norm's root does.
    shrink = [float(logits.norm() / found[1].norm()) for logits in found]
    assert shrink[0] > 1.2 > shrink[1] == 1 > shrink[2] > shrink[3]


State = list[Tensor]
STEPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda a, b, w: F.linear(a, w),
    "silu": lambda a, b, w: F.silu(a),
    "add": lambda a, b, w: a + b,
    "mul": lambda a, b, w: a * b,
    "turned": lambda a, b, w: torch.cat((-a[..., 4:], a[..., :4]), -1),
    "every other": lambda a, b, w: a[..., ::2].repeat_interleave(2, -1),
    "same": lambda a, b, w: a.to(a.dtype),
    "view": lambda a, b, w: a.view(1, -1, 2, 4).transpose(1, 2).transpose(1, 2).flatten(2),
    "chunks": lambda a, b, w: torch.cat(a.chunk(2, -1)[::-1], -1),
    "best": lambda a, b, w: a.topk(8, -1).values,
    "expand": lambda a, b, w: a[..., :1].expand(-1, -1, 8),
    "empty": lambda a, b, w: torch.empty_like(a).copy_(b),
    "change": lambda a, b, w: (a + 1).mul_(0.5),
    "written": lambda a, b, w: _written(a, b),
    "times one": lambda a, b, w: a * 1,
    "plus nothing": lambda a, b, w: torch.zeros_like(a) + b,
    "length": lambda a, b, w: a / a.shape[1],
    "mean": lambda a, b, w: a - a.mean(1, keepdim=True),
    "strided": lambda a, b, w: a.contiguous().as_strided(a.shape, (8 * a.shape[1], 8, 1)),
}
READ: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda a: a,
    "second half": lambda a: a[..., 4:],
    "every other": lambda a: a[..., 1::2],
    "turned": lambda a: a.transpose(1, 2),
    "own": lambda a: a * 2,
}
Step = tuple[str, int, int]


def _written(a: Tensor, b: Tensor) -> Tensor:
    made = a.new_empty(a.shape)
    made[..., :4] = b[..., 4:]
    made[..., 4:] = a[..., :4]
    return made


def layer(x: Tensor, weight: Tensor, steps: Sequence[Step], read: str, change: int) -> tuple[Tensor, Tensor]:
    """Some calls, attention, and what else is read of the layer; what was computed may be changed behind it."""
    state = [x]
    for name, left, right in steps:
        state.append(STEPS[name](state[left % len(state)], state[right % len(state)], weight))
    query, key, value = (state[-1 - place % len(state)][:, None] for place in range(3))
    out = F.scaled_dot_product_attention(query, key, value)[:, 0]
    seen = READ[read](state[change % len(state)])
    changed = state[1 + change % (len(state) - 1)]
    if change % 3 == 0 and changed.stride(-1):
        out = out + changed.add_(1)  # where that is a view of what is read, so is that
    return out, seen


def compare(steps: Sequence[Step], read: str, change: int, run: Any = None) -> int:
    """Three layers of some steps, eager and with bodies; how many stretches have one."""
    weights = torch.linspace(-1, 1, 192).view(3, 8, 8)
    torch._dynamo.mark_static(weights)  # so where each begins is known
    matches = []

    def program(x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        x, results = x * 1, []
        for weight in weights.unbind(0):
            x, seen = layer(x, weight, steps, read, change)
            results.append(seen)
        return (x, *results)

    def backend(gm: GraphModule, inputs: list[Any]) -> Any:
        rewrite = Rewrite(gm.graph, Facts("prefill", by_inductor=True), segmo.Options())
        outcome = OutlineLayers().run(rewrite)
        gm.graph.lint()
        gm.recompile()
        matches.append(outcome.matches)
        return run(gm, inputs, {}, True) if run else gm.forward

    torch._dynamo.reset()
    with torch.no_grad(), patch.object(outline_layers, "_WORTH", 2):
        compiled = torch.compile(program, backend=backend, dynamic=True)
        for rows in (5, 9):
            x = torch.linspace(-2, 2, 8 * rows).view(1, rows, 8).sin()
            expected, found = program(x, weights), compiled(x, weights)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5 if run else 0, atol=1e-5 if run else 0)
    return sum(matches)


PROGRAMS = st.tuples(
    st.lists(st.tuples(st.sampled_from([*STEPS]), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10),
    st.sampled_from([*READ]),
    st.integers(0, 9),
)
VIEWS: tuple[list[Step], str, int] = ([("linear", 0, 0), ("silu", 1, 0), ("mul", 1, 2)], "second half", 1)
EMPTY: tuple[list[Step], str, int] = ([("linear", 0, 0), ("silu", 1, 0), ("written", 2, 1)], "all", 2)
CHANGED: tuple[list[Step], str, int] = ([("linear", 0, 0), ("view", 1, 1), ("silu", 2, 0)], "every other", 6)
SAME: tuple[list[Step], str, int] = (
    [("linear", 0, 0), ("silu", 1, 0), ("mul", 2, 1), ("times one", 3, 3)], "all", 54,
)  # fmt: skip


@given(PROGRAMS)
@example(SAME)
@example(VIEWS)
@example(EMPTY)
@example(CHANGED)
def test_any_layers_give_the_same(program: tuple[list[Step], str, int]) -> None:
    compare(*program)


@pytest.mark.slow
@pytest.mark.parametrize("program", [VIEWS, EMPTY, CHANGED, SAME])
def test_inductor_gives_what_eager_does_of_views_and_changes(program: tuple[list[Step], str, int]) -> None:
    assert compare(*program, run=lower.compile_graph) >= 2


def test_operands_that_begin_at_another_place_in_16_bytes_have_another_body() -> None:
    """A GPU's kernels are compiled to read 16 bytes at once, or not to."""
    found: list[int] = []

    def program(x: Tensor) -> Tensor:
        parts = [x[..., start : start + 8] for start in (0, 4, 1, 8)]
        x = F.scaled_dot_product_attention(parts[0], parts[0], parts[0])
        for part in parts:
            rows = F.silu(part * 2).square() - part.sin()
            x = F.scaled_dot_product_attention(x, rows, rows)
        return x

    def backend(gm: GraphModule, inputs: list[Any]) -> Any:
        outcome = OutlineLayers().run(Rewrite(gm.graph, Facts("prefill", by_inductor=True), segmo.Options()))
        found.append(outcome.matches)
        gm.recompile()
        return gm.forward

    x = torch.randn(1, 7, 16)
    with torch.no_grad(), patch.object(outline_layers, "_WORTH", 2):
        assert torch.equal(torch.compile(program, backend=backend, dynamic=True)(x), program(x))
    assert found == [3]


@dataclass(frozen=True)
class Weigh:
    """A user's pass: weights each layer's MLP by a tensor of its own, of which it notes nothing in the graph."""

    name: ClassVar[str] = "weigh"
    tier: ClassVar[Tier] = Tier.APPROXIMATE

    def run(self, rewrite: Rewrite) -> Outcome:
        found = rewrite.graph.find_nodes(op="call_function", target=F.silu)
        for number, node in enumerate(found):
            rewrite.graph.owning_module.register_buffer(f"weight_{number}", torch.full((1,), 1.0 + number))
            with rewrite.graph.inserting_after(node):
                weight = rewrite.graph.get_attr(f"weight_{number}")
            with rewrite.graph.inserting_after(weight):
                weighed = rewrite.graph.call_function(operator.mul, (node, weight))
            node.replace_all_uses_with(weighed, lambda user, own=weighed: user is not own)
        return Outcome(matches=len(found))


def test_tensors_that_a_user_s_pass_puts_into_the_layers() -> None:
    front, last = DEFAULT.rsplit("outline-layers", 1)
    pipeline = f"{front}test_outline_layers:Weigh,outline-layers{last}"
    with patch.object(lower, "compile_graph", lambda gm, *_: gm.forward):
        expected = answer("qwen2_vl", pipeline=pipeline, disable="outline-layers")
        assert torch.equal(answer("qwen2_vl", pipeline=pipeline), expected)
        matches = records()["prefill"].matches
        assert not torch.equal(answer("qwen2_vl"), expected)
    assert matches > 1


@pytest.mark.parametrize("scorer", ["embedding", "attention"])
def test_layers_before_a_cut_and_behind_it_are_two_bodies(scorer: str) -> None:
    """Dynamo has traced all of them with the whole prompt."""
    with patch.object(lower, "compile_graph", lambda gm, *_: gm.forward):
        expected = answer("qwen2_vl", scorer=scorer, layer=2, disable="outline-layers")
        assert torch.equal(answer("qwen2_vl", scorer=scorer, layer=2), expected)
    bodies = records()["prefill"].text_after.count("def forward") - 1
    assert bodies == (2 if scorer == "attention" else 1)
