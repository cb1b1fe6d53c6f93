"""What a pass did is undone where it does not apply, and the code of each stage can be read afterwards."""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.fx import GraphModule, Node, symbolic_trace

from segmo.options import Options
from segmo.passes.analyse import Facts, Merge
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.runner import PassRecord, Result, run_pipeline
from segmo.passes.snapshot import Snapshot


def double_and_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.mul(2) + y.relu()


def traced() -> GraphModule:
    gm = symbolic_trace(double_and_add)
    for node in gm.graph.nodes:
        node.meta["stack_trace"] = f"of {node.name}"
        if node.op == "placeholder":
            node._dynamo_source = f"source of {node.name}"
    return gm


def scramble(rewrite: Rewrite) -> None:
    """Changes everything about a graph that a pass can."""
    graph = rewrite.graph
    for node in list(graph.nodes):
        if node.target is operator.add:
            node.target, node.kwargs = operator.sub, {}
        elif node.op == "call_method" and node.target == "relu":
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "call_method":
            node.op, node.target, node.args = "call_function", torch.mul, (node.args[0], 3)
            node.meta.clear()
    rewrite.notes.append("scrambled")
    rewrite.nodes["last"] = next(iter(graph.nodes))


def miss(rewrite: Rewrite) -> Outcome:
    scramble(rewrite)
    raise DoesNotApply(Miss.of("no-segments"))


def no_match(rewrite: Rewrite) -> Outcome:
    scramble(rewrite)
    return Outcome(misses=(Miss.of("no-segments"),))


def match(rewrite: Rewrite) -> Outcome:
    scramble(rewrite)
    return Outcome(matches=1)


@dataclass(frozen=True)
class Given:
    """A pass that does what it is given."""

    name: ClassVar[str] = "given"
    tier: ClassVar[Tier] = Tier.EXACT

    does: Callable[[Rewrite], Outcome]

    def run(self, rewrite: Rewrite) -> Outcome:
        return self.does(rewrite)


def run(gm: GraphModule, *does: Callable[[Rewrite], Outcome], facts: Facts | None = None) -> Result:
    return run_pipeline(gm, facts or Facts("other"), Options(), [Given(each) for each in does])


@pytest.mark.parametrize("does", [miss, no_match])
def test_a_pass_that_does_not_apply_leaves_the_graph_as_it_was(does: Callable[[Rewrite], Outcome]) -> None:
    gm, inputs = traced(), (torch.randn(3), torch.randn(3))
    code, names = gm.code, [node.name for node in gm.graph.nodes]
    metas, expected = [node.meta for node in traced().graph.nodes], gm(*inputs)
    result = run(gm, does)
    gm.graph.lint()
    assert gm.code == code
    assert [node.name for node in gm.graph.nodes] == names
    assert [node.meta for node in gm.graph.nodes] == metas
    sources = [node._dynamo_source for node in gm.graph.nodes if node.op == "placeholder"]
    assert sources == ["source of x", "source of y"]
    assert torch.equal(gm(*inputs), expected)
    assert (result.notes, result.recorded) == ([], ())
    assert result.records[0].before is result.records[0].after


def test_what_the_analysis_found_is_found_in_the_graph_that_was_put_back() -> None:
    gm, seen = traced(), []
    x, doubled, y, *_ = gm.graph.nodes
    facts = Facts("prefill", merge=Merge(doubled, y, x, None), caches=(doubled,))

    def look(rewrite: Rewrite) -> Outcome:
        assert rewrite.facts.merge is not None
        nodes: list[Node] = [rewrite.facts.merge.node, *rewrite.facts.caches]
        seen.extend(node in set(rewrite.graph.nodes) for node in nodes)
        return Outcome()

    run(gm, miss, look, look, no_match, look, facts=facts)
    assert seen == [True] * 6


def test_the_code_of_every_stage_is_that_of_its_moment() -> None:
    gm, inputs = traced(), (torch.randn(3), torch.randn(3))
    first, second = run(gm, match, miss).records
    assert torch.equal(gm(*inputs), inputs[0].mul(3) - inputs[1])
    for text in (first.text_before, first.text_before):
        assert "mul(2)" in text
        assert "relu" in text
    assert "torch.mul(x, 3)" in first.text_after
    assert "relu" not in first.text_after
    assert second.text_before is first.text_after is second.text_after


def test_records_go_to_other_processes_with_their_code() -> None:
    gm = traced()
    for node in gm.graph.nodes:
        node.meta["made_by"] = lambda: None  # as little to be pickled as what Dynamo keeps there
    records = run(gm, match, miss).records
    sent: list[PassRecord] = pickle.loads(pickle.dumps(records))
    assert [(each.text_before, each.text_after) for each in sent] == [(r.text_before, r.text_after) for r in records]
    assert sent[0].after is sent[1].before


def test_no_code_is_written_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[GraphModule] = []
    monkeypatch.setattr("segmo.passes.snapshot.graph_text", lambda gm: written.append(gm) or "code")
    records = run(traced(), match, no_match).records
    assert not written
    assert records[0].text_before == records[0].text_after == "code"
    assert len(written) == 2


def test_a_snapshot_tells_whether_a_graph_still_stands_as_it_stood() -> None:
    gm = traced()
    before = Snapshot(gm)
    assert before.is_of(gm.graph)
    next(node for node in gm.graph.nodes if node.target is operator.add).kwargs = {"alpha": 2}
    assert not before.is_of(gm.graph)
