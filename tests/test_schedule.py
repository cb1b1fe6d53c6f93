"""Blocks of a prefill, packed into a tensor and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PAD, QUERY, SINK, TURN, Layout, batch_tensors, batches

from segmo.errors import PromptError
from segmo.runtime.attention.reference import dense_mask
from segmo.runtime.schedule import RowSchedule, attention_schedule, pack, unpack, visible_pairs


@st.composite
def row_schedules(draw: st.DrawFn) -> RowSchedule:
    positions = st.integers(0, 10**6)
    ascending = st.lists(positions, max_size=4, unique=True).map(sorted).map(tuple)
    turns = draw(st.lists(st.tuples(positions, positions), max_size=3).map(tuple))
    return RowSchedule(draw(positions), draw(positions), draw(ascending), draw(positions), draw(ascending), turns)


@given(rows=st.lists(row_schedules(), max_size=4))
def test_unpack_is_the_inverse_of_pack(rows: list[RowSchedule]) -> None:
    assert unpack(pack(rows)) == rows


@given(rows=batches())
def test_blocks_are_the_roles(rows: list[Layout]) -> None:
    schedule = unpack(attention_schedule(*batch_tensors(rows)))
    for layout, row in zip(rows, schedule, strict=True):
        ends = (*row.segment_ends, row.end)
        roles: list[object] = [PAD] * row.start + [SINK] * (row.sink_end - row.start)
        for segment, (start, end) in enumerate(zip((row.sink_end, *ends), ends, strict=False)):
            roles += [segment if segment < len(row.segment_ends) else QUERY] * (end - start)
        for start, end in row.turns:
            roles[start:end] = [TURN] * (end - start)
        roles += [PAD] * (len(layout.roles) - row.end)
        assert tuple(roles) == layout.roles
        assert row.query_start == (row.segment_ends[-1] if row.segment_ends else row.sink_end)
        inside = range(row.sink_end, row.query_start)
        assert row.context == tuple(i for i in inside if layout.context[i] or layout.roles[i] == TURN)


@given(rows=batches())
def test_pairs_are_those_of_the_dense_mask(rows: list[Layout]) -> None:
    schedule = attention_schedule(*batch_tensors(rows))
    masks = [dense_mask(row, len(layout.roles)) for row, layout in zip(unpack(schedule), rows, strict=True)]
    assert visible_pairs(schedule) == sum(int(mask.sum()) for mask in masks)


def test_a_row_of_nothing_but_padding_is_empty() -> None:
    segment_BK = torch.tensor([[-1, 0, 0, 1, -2]])
    schedule = attention_schedule(segment_BK, None, torch.zeros(1, 5, dtype=torch.bool))
    assert unpack(schedule) == [RowSchedule(0, 0, (), 0, ())]


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        ([1, 1, 0, 1, 1, 1], "hides tokens inside the prompt"),
        ([0, 0, 1, 1, 1, 1], "hides video tokens"),
        ([1, 1, 1, 1, 0, 0], "hides video tokens"),
    ],
)
def test_a_mask_that_hides_more_than_padding_is_refused(valid: list[int], message: str) -> None:
    segment_BK = torch.tensor([[-1, 0, 0, 1, 1, -2]])
    with pytest.raises(PromptError, match=message):
        attention_schedule(segment_BK, None, torch.tensor([valid], dtype=torch.bool))


def test_text_behind_a_video_of_which_nothing_is_left_is_text_in_front() -> None:
    segment_BK = torch.tensor([[-1, -3, -3, 0, 0, -3, 1, -3, -2]])
    assert unpack(attention_schedule(segment_BK, None, None)) == [
        RowSchedule(0, 3, (6, 8), 9, (5, 7), ((5, 6), (7, 8)))
    ]


def test_text_of_the_question_inside_the_video_is_refused() -> None:
    with pytest.raises(PromptError, match="must come after its video"):
        attention_schedule(torch.tensor([[-1, 0, -2, 1]]), None, None)
