"""Plans: what they cover, what they predict, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmo.errors import PlanError
from segmo.runtime.cost.device import DEVICES
from segmo.runtime.cost.shape import PRESETS
from segmo.runtime.partition.explain import explain
from segmo.runtime.partition.plan import CACHES
from segmo.runtime.partition.planner import METHODS, make_plan
from segmo.runtime.partition.workload import Workload

SHAPE = PRESETS["qwen2-0.5b"]
H100 = DEVICES["h100"]


def workload(segments, context=None, sinks=20, query=30):
    context = context or [0] * len(segments)
    return Workload(sinks, query, tuple(segments), tuple(context))


@st.composite
def workloads(draw):
    segments = draw(st.lists(st.integers(1, 3000), min_size=0, max_size=9))
    context = [draw(st.integers(0, min(size, 64))) for size in segments]
    return workload(segments, context, draw(st.integers(0, 40)), draw(st.integers(1, 40)))


def visible_pairs(work):
    """Pairs of the attention rule, counted token by token (once for the whole prompt)."""
    pairs, sinks, context = 0, work.sinks, 0
    pairs += sinks * (sinks + 1) // 2
    for size, own_context in zip(work.segments, work.context, strict=True):
        pairs += size * (size + 1) // 2 + size * (sinks + context)
        context += own_context
    before = sinks + sum(work.segments)
    return pairs + work.query * before + work.query * (work.query + 1) // 2


@given(
    workloads(),
    st.integers(1, 5),
    st.sampled_from(METHODS),
    st.booleans(),
    st.sampled_from(CACHES),
)
def test_every_token_and_pair_is_computed_once(work, world, method, split, cache):
    plan = make_plan(work, SHAPE, [H100] * world, method, split, cache)
    seen = sorted((p.segment, p.start, p.end) for run in plan.pieces for p in run)
    for segment, size in enumerate(work.segments):
        spans = [(start, end) for s, start, end in seen if s == segment]
        assert spans[0][0] == 0
        assert spans[-1][1] == size
        assert all(one[1] == two[0] for one, two in itertools.pairwise(spans))
    replicated = work.sinks * (work.sinks + 1) // 2
    pairs = sum(x.own_pairs + x.shared_pairs + x.query_pairs for x in plan.loads)
    assert pairs - (world - 1) * replicated == visible_pairs(work)
    if not split:
        assert all(p.start == 0 and p.end == work.segments[p.segment] for run in plan.pieces for p in run)


@given(workloads(), st.integers(1, 5), st.sampled_from(METHODS))
def test_the_critical_path_is_the_predicted_time(work, world, method):
    plan = make_plan(work, SHAPE, [H100] * world, method)
    weighted = nx.DiGraph()
    weighted.add_edges_from((one, two, {"weight": plan.graph.nodes[two]["seconds"]}) for one, two in plan.graph.edges)
    weighted.add_edges_from(
        ("start", name, {"weight": stage["seconds"]}) for name, stage in plan.graph.nodes(data=True)
    )
    assert nx.dag_longest_path_length(weighted) == pytest.approx(plan.seconds)
    assert sum(plan.graph.nodes[name]["seconds"] for name in plan.critical_path) == pytest.approx(plan.seconds)
    assert plan.seconds >= max(plan.busy) * (1 - 1e-9)
    assert explain(plan)


@given(workloads(), st.integers(1, 4))
def test_balanced_is_never_worse_than_equal_tokens(work, world):
    """By the largest busy time, which is what the partition minimises."""
    balanced = make_plan(work, SHAPE, [H100] * world, "balanced", split=False)
    equal = make_plan(work, SHAPE, [H100] * world, "equal", split=False)
    assert max(balanced.busy) <= max(equal.busy) * 1.01


def test_a_faster_rank_gets_more():
    plan = make_plan(workload([500] * 40), SHAPE, [H100, H100.slower(3)])
    fast, slow = (load.tokens for load in plan.loads)
    assert 2.2 < (fast - 50) / (slow - 50) < 3.8
    assert plan.imbalance < 1.1


def test_a_long_scene_is_cut_inside_only_where_it_pays():
    work = workload([100, 60_000, 100])
    whole = make_plan(work, SHAPE, [H100] * 2, split=False)
    cut = make_plan(work, SHAPE, [H100] * 2, split=True)
    assert cut.seconds < 0.7 * whole.seconds
    assert cut.exports.total > 1000
    assert any("alone is" in line for line in explain(whole))
    slow_link = dataclasses.replace(H100, link_bytes_per_s=1e6)
    assert make_plan(work, SHAPE, [slow_link] * 2, split=True).exports.total == 0


def test_more_ranks_than_segments_leave_ranks_empty_and_say_so():
    plan = make_plan(workload([400, 400]), SHAPE, [H100] * 4, split=False)
    assert sum(not run for run in plan.pieces) == 2
    assert any("Without segments" in line for line in explain(plan))


def test_zigzag_gives_each_rank_an_early_and_a_late_run():
    plan = make_plan(workload([500] * 16, context=[64] * 16), SHAPE, [H100] * 4, "zigzag")
    for rank, run in enumerate(plan.pieces):
        assert run[0].segment <= run[-1].segment
        assert (run[0].segment < 8 < run[-1].segment) or rank == 3


def test_a_plan_that_does_not_fit_is_refused_with_numbers():
    small = dataclasses.replace(H100, memory_bytes=2 * 2**30)
    with pytest.raises(PlanError, match="GiB"):
        make_plan(workload([500_000] * 4), SHAPE, [small] * 2)
    huge = PRESETS["qwen2.5-vl-72b"]
    with pytest.raises(PlanError, match=r"rank 0 \(H100 SXM\) would hold .*weights"):
        make_plan(workload([5]), huge, [H100])


def test_a_sharded_cache_fits_where_a_gathered_one_does_not():
    work = workload([100_000] * 8)
    tight = dataclasses.replace(H100, memory_bytes=12 * 10**9)
    with pytest.raises(PlanError):
        make_plan(work, SHAPE, [tight] * 4, cache="gather")
    assert make_plan(work, SHAPE, [tight] * 4, cache="sharded").memory[0].total < 12 * 10**9


def test_memory_limits_move_segments_to_the_rank_that_has_room():
    work = workload([50_000] * 8)
    small = dataclasses.replace(H100, memory_bytes=int(5.2e9))
    plan = make_plan(work, SHAPE, [small, H100], cache="sharded", split=False)
    assert plan.loads[0].tokens < plan.loads[1].tokens
    assert plan.memory[0].total <= small.memory_bytes


@pytest.mark.parametrize("wrong", [{"method": "balancd"}, {"cache": "gathr"}])
def test_unknown_names_are_refused_with_the_nearest(wrong):
    with pytest.raises(PlanError, match="did you mean"):
        make_plan(workload([5]), SHAPE, [H100], **wrong)
