"""Attention over ranks equals the dense-mask reference of the whole prompt, in real processes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from crew import Crew
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_cases import Case, attend, attend_last, attend_with_delays, decode

from segmo.errors import PlanError
from segmo.runtime.attention.reference import segment_attention
from segmo.runtime.cost.device import DEVICES
from segmo.runtime.cost.shape import PRESETS
from segmo.runtime.distributed.needs import Needs
from segmo.runtime.distributed.schedule import RankSchedule
from segmo.runtime.partition.assignment import Piece
from segmo.runtime.partition.plan import Plan
from segmo.runtime.partition.workload import Workload
from segmo.runtime.schedule import RowSchedule, pack


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def crew(request) -> Iterator[Crew]:
    crew = Crew(request.param)
    yield crew
    crew.close()


@st.composite
def cases(draw, world: int) -> Case:
    """Unequal segments, cut anywhere (inside segments too) and handed to ranks in any order."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=0, max_size=6))
    sinks, query = draw(st.integers(0, 5)), draw(st.integers(0, 6))
    ends, position = [], sinks
    for size in sizes:
        position += size
        ends.append(position)
    context = draw(st.sets(st.integers(sinks, position - 1), max_size=12)) if sizes else set()
    inside = draw(st.sets(st.integers(sinks, position), max_size=3)) if draw(st.booleans()) else set()
    between = sorted(draw(st.sets(st.integers(sinks, position), max_size=4)))
    turns = tuple(zip(between[::2], between[1::2], strict=False))
    context |= {place for start, end in turns for place in range(start, end)}
    edges = sorted({sinks, *ends, *inside})
    spans: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    contiguous = draw(st.booleans())
    owner = 0
    for start, end in itertools.pairwise(edges):
        owner = draw(st.integers(owner if contiguous else 0, world - 1))
        spans[owner].append((start, end))
    groups = draw(st.sampled_from([1, 2]))
    return Case(
        row=RowSchedule(0, sinks, tuple(ends), position + query, tuple(sorted(context)), turns),
        spans=tuple(map(tuple, spans)),
        home=draw(st.integers(0, world - 1)),
        heads=groups * draw(st.sampled_from([1, 3])),
        groups=groups,
        size=draw(st.sampled_from([8, 64])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        seed=draw(st.integers(0, 1000)),
    )


def tolerance(dtype):
    return {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}


def reference(case):
    q, k, v = (x.float()[None] for x in case.whole())
    return segment_attention(q, k, v, pack([case.row]), case.scale)[0]


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_rank_equals_the_reference(crew, data):
    case = data.draw(cases(crew.world))
    results = crew.run(attend, case, crew.world)
    expected, keys = reference(case), case.whole()[1]
    seen = torch.zeros(case.row.end, dtype=torch.long)
    questions = []
    for out, positions, gathered, _ in results:
        torch.testing.assert_close(out.float(), expected[:, positions], **tolerance(case.dtype))
        assert torch.equal(gathered, keys)
        questions.append(out[:, out.shape[1] - (case.row.end - case.row.query_start) :])
        seen[positions] += 1
    assert bool((seen >= 1).all())
    assert bool((seen[case.row.sink_end : case.row.query_start] == 1).all())
    assert all(torch.equal(one, questions[0]) for one in questions)


@given(st.data(), st.integers(1, 4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_decode_over_a_sharded_cache_equals_full_attention(crew, data, new):
    case = data.draw(cases(crew.world))
    results = crew.run(decode, case, new)
    q, k, v = (x.float() for x in case.whole(new))
    mask = torch.ones(new, case.row.end + new, dtype=torch.bool).tril(case.row.end)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[None, :, -new:], k[None], v[None], attn_mask=mask, scale=case.scale, enable_gqa=True
    )[0]
    for out in results:
        torch.testing.assert_close(out.float(), expected, **tolerance(case.dtype))
        assert torch.equal(out, results[0])


def spread(world: int, context: int = 1) -> Case:
    """Twelve segments, dealt out in order; four context tokens at the start of one of them."""
    ends = tuple(4 + 16 * (i + 1) for i in range(12))
    starts = (4, *ends[:-1])
    spans = tuple(tuple((starts[i], ends[i]) for i in range(12) if i * world // 12 == rank) for rank in range(world))
    row = RowSchedule(0, 4, ends, ends[-1] + 5, tuple(range(starts[context], starts[context] + 4)))
    return Case(row, spans, 0, 4, 2, 16, torch.float32, 0)


@pytest.mark.parametrize("context", [1, 6, 11])
def test_bytes_are_those_of_later_ranks_and_of_the_question(crew, context):
    """Context travels to ranks with later segments only: a row sees nothing behind it."""
    case = spread(crew.world, context)
    owner = next(rank for rank, spans in enumerate(case.spans) if (4 + 16 * context, 20 + 16 * context) in spans)
    others = crew.world - 1
    traffic = crew.run(attend, case, crew.world)
    sharing = 4 * 2 * 2 * 16 * 4  # tokens, keys and values, heads, size, bytes
    part = 5 * 4 * (16 + 1) * 4
    question = part * others if crew.world <= 3 else 2 * (part + part // 17) * 3 // 4
    longest = 16 * -(-12 // crew.world)
    cache = (longest + 4 + 5) * 2 * 16 * 4 * others
    for rank, (*_, received) in enumerate(traffic):
        assert received == pytest.approx(sharing * (rank > owner) + question + cache, abs=2)


@given(st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_row_alone_is_the_same_and_no_context_travels(crew, data):
    case = data.draw(cases(crew.world).filter(lambda case: case.row.end > case.row.query_start))
    expected = reference(case)[:, -1:]
    part = case.heads * (case.size * case.dtype.itemsize + 4)
    reduced = case.heads * 4 * (1 + case.size + 1)
    received = part * (crew.world - 1) if crew.world <= 3 else 2 * reduced * 3 // 4
    results = crew.run(attend_last, case)
    for out, mine in results:
        torch.testing.assert_close(out.float(), expected, **tolerance(case.dtype))
        assert torch.equal(out, results[0][0])
        assert mine == pytest.approx(received, abs=2)


@given(st.data(), st.integers(1, 9))
def test_the_plan_counts_what_ranks_need_of_each_other(data, world):
    """Brute force over rows; and a plan, whose context lies at the start of segments, counts the same for one video."""
    case = data.draw(cases(world))
    needs = Needs(case.row, case.spans)
    owner = {p: rank for rank, spans in enumerate(case.spans) for span in spans for p in range(*span)}
    seen = {(rank, p) for rank, spans in enumerate(case.spans) for span in spans for p in visible(case.row, *span)}
    for rank in range(world):
        others = sorted(p for reader, p in seen if reader == rank and owner[p] != rank)
        assert sorted(p for source in range(world) if source != rank for p in needs.seen[rank][source]) == others
        assert needs.exchange.needed[rank] == len(others)
        assert set(others) <= set(needs.arriving(rank))
    starts = (case.row.sink_end, *case.row.segment_ends[:-1])
    heads = tuple(p for start, end in zip(starts, case.row.segment_ends, strict=False) for p in range(start, end)[:3])
    row = dataclasses.replace(case.row, context=heads, turns=())
    pieces = [
        [Piece(s, a - first, b - first) for a, b in spans for s, first in enumerate(starts) if segment_of(row, a) == s]
        for spans in case.spans
    ]
    plan = Plan(Workload.of_schedule(row), PRESETS["qwen2-0.5b"], (DEVICES["h100"],) * world, pieces, 0, "gather", "")
    assert plan.exports == Needs(row, case.spans).exchange


def segment_of(row, position):
    return sum(end <= position for end in row.segment_ends)


def visible(row, start, end):
    """What the rows of a piece see outside it, sinks aside, by the rule of attention."""
    if any(start < last and first < end for first, last in row.turns):
        return set(range(row.sink_end, start))
    segment = segment_of(row, start)
    return {p for p in range(row.sink_end, start) if p in row.context or segment_of(row, p) == segment}


def test_random_delays_change_nothing(crew):
    case = spread(crew.world)
    runs = 100
    results = crew.run(attend_with_delays, case, runs, 7)
    expected = reference(case)[:, -5:] * runs
    for total in results:
        torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(total, results[0])


@pytest.mark.parametrize("spans", [((0, 4),), ((2, 6), (6, 8)), ((2, 5), (6, 8)), ((2, 8), (4, 8))])
def test_pieces_that_do_not_cover_the_segments_are_refused(spans):
    with pytest.raises(PlanError, match="exactly once"):
        RankSchedule(RowSchedule(0, 2, (6, 9), 12, ()), (tuple(spans),), 0, 0)
