"""The attention schedule: which tokens of a row form which block. Made once per prefill, for all layers.

Legend: B batch, K tokens.

A custom op can only pass tensors on, so the schedule travels as one flat int64 tensor on the CPU;
:func:`pack` and :func:`unpack` are each other's inverse.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.host import Array, read
from segmo.runtime.layout import NO_ROLE, QUERY, SINK, TURN

Span = tuple[int, int]


@dataclass(frozen=True)
class RowSchedule:
    """Blocks of one row.

    Attributes:
        start: first token that is not left padding.
        sink_end: end of the sinks, which is where the first segment starts.
        segment_ends: end of each segment; the last one is where the query starts.
        end: end of the query, which is where right padding starts.
        context: positions of context tokens inside segments, ascending.
        turns: start and end of each text between two videos, ascending. It lies in a segment, its tokens are context,
            and its rows see everything before them.
    """

    start: int
    sink_end: int
    segment_ends: tuple[int, ...]
    end: int
    context: tuple[int, ...]
    turns: tuple[Span, ...] = ()

    @property
    def query_start(self) -> int:
        return self.segment_ends[-1] if self.segment_ends else self.sink_end

    def cut_at_turns(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Parts of a range inside of which rows see alike, and whether they see everything before; none is empty."""
        for first, last in self.turns:
            if start < min(first, end):
                yield start, min(first, end), False
            if max(start, first) < min(last, end):
                yield max(start, first), min(last, end), True
            start = max(start, last)
        if start < end:
            yield start, end, False


def _row(segment_K: Array, context_K: Array | None, valid_K: Array | None) -> RowSchedule:
    length = segment_K.shape[0]
    start, end = 0, length
    if valid_K is not None:
        inside = np.flatnonzero(valid_K)
        if not len(inside):
            return RowSchedule(0, 0, (), 0, ())
        start, end = int(inside[0]), int(inside[-1]) + 1
        if len(inside) != end - start:
            raise PromptError(
                "the attention mask hides tokens inside the prompt; SegMo supports padding around it only"
            )
    heads = np.flatnonzero(np.diff(segment_K, prepend=NO_ROLE))
    counts = np.diff(np.append(heads, length))
    runs = list(zip(segment_K[heads].tolist(), counts.tolist(), strict=True))
    sink_end = runs[0][1] if runs and runs[0][0] == SINK else 0
    ends: list[int] = []
    turns: list[Span] = []
    position, last = sink_end, None
    for value, count in runs:
        if value == TURN and not ends:  # nothing of the videos before it is left, so it is one more text in front
            sink_end = position = position + count
        elif value == TURN:
            turns.append((position, position + count))
            position += count
            ends[-1] = position
        elif value >= 0:
            position += count
            if value == last:  # a segment that goes on behind the text between two videos
                ends[-1] = position
            else:
                ends.append(position)
            last = value
    if ends and (start > sink_end or end < position):
        raise PromptError("the attention mask hides video tokens; SegMo supports padding around the prompt only")
    if any(value == QUERY for value, _ in runs[:-1]):
        raise PromptError("a prompt's question must come after its video")
    context: list[int] = []
    if context_K is not None:
        # A flag on a sink or on the question changes nothing: who comes later sees those anyway.
        context = (np.flatnonzero(context_K[sink_end:position]) + sink_end).tolist()
    if turns:
        context = sorted({*context, *(at for first, last in turns for at in range(first, last))})
    return RowSchedule(start, max(sink_end, start), tuple(ends), end, tuple(context), tuple(turns))


def attention_schedule(segment_BK: Tensor, context_BK: Tensor | None, valid_BK: Tensor | None) -> Tensor:
    """Packed schedule of a batch, 1-D int64 on the CPU.

    Args:
        segment_BK: from :func:`segmo.runtime.segments.segment_ids`.
        context_BK: from :func:`segmo.runtime.segments.context_tokens`, or None for no context.
        valid_BK: False at padding, or None for no padding.

    Raises:
        PromptError: padding lies inside the prompt.
    """
    segment, context, valid = read(segment_BK, context_BK, valid_BK)
    return pack(
        [
            _row(segment_K, None if context is None else context[row], None if valid is None else valid[row])
            for row, segment_K in enumerate(segment)
        ]
    )


def pack(rows: list[RowSchedule]) -> Tensor:
    """Flat int64 tensor of a list of rows."""
    flat: list[int] = []
    for row in rows:
        flat += [row.start, row.sink_end, row.end, len(row.segment_ends), len(row.context), len(row.turns)]
        flat += [*row.segment_ends, *row.context, *chain(*row.turns)]
    return torch.tensor(flat, dtype=torch.long)


def unpack(schedule: Tensor) -> list[RowSchedule]:
    """The rows of a packed schedule."""
    flat = schedule.tolist()
    rows, at = [], 0
    while at < len(flat):
        start, sink_end, end, *counts = flat[at : at + 6]
        at += 6
        lists = []
        for count in (counts[0], counts[1], 2 * counts[2]):
            lists.append(tuple(flat[at : at + count]))
            at += count
        turns = tuple(zip(lists[2][::2], lists[2][1::2], strict=True))
        rows.append(RowSchedule(start, sink_end, lists[0], end, lists[1], turns))
    return rows


def visible_pairs(schedule: Tensor) -> int:
    """Pairs (query, key) that attention computes for a packed schedule, over all rows of the batch."""
    pairs = 0
    for row in unpack(schedule):
        sinks, question = row.sink_end - row.start, row.end - row.query_start
        pairs += sinks * (sinks + 1) // 2 + question * (row.query_start - row.start) + question * (question + 1) // 2
        for start, end in pairwise((row.sink_end, *row.segment_ends)):
            size = end - start
            pairs += size * (size + 1) // 2 + size * (sinks + bisect_left(row.context, start))
            hidden = start - row.sink_end - bisect_left(row.context, start)
            pairs += hidden * sum(last - first for first, last in row.turns if start <= first < end)
    return pairs
