"""What each rank owns of one prompt, and where in its own tensors each block lies.

Legend: K kept tokens of the prompt, L tokens of this rank, W ranks, X tokens that this rank's pieces see, sinks and
themselves aside: context tokens and earlier pieces of their segments, its own and other ranks'.

A rank's tensors hold sinks, its own pieces in order of the prompt, and the question: (sinks | own |
question).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segmo.errors import PlanError
from segmo.runtime.distributed.needs import Needs, Span
from segmo.runtime.partition.plan import Plan
from segmo.runtime.schedule import RowSchedule


@dataclass(frozen=True)
class Block:
    """A piece of a segment on this rank, or a part of one that text between videos cuts off.

    Attributes:
        start, end: rows in the rank's tensors.
        visible: which of the tokens that the rank sees (in order of the prompt) its rows see, ascending.
    """

    start: int
    end: int
    visible: tuple[int, ...]

    @property
    def visible_prefix(self) -> int | None:
        """How many, when they are simply the first ones; otherwise None."""
        count = len(self.visible)
        return count if count == 0 or self.visible[-1] == count - 1 else None


@dataclass(frozen=True)
class RankSchedule:
    """One row of a prompt as one rank sees it.

    Attributes:
        row: the schedule of the whole row.
        spans: the pieces of every rank as positions in the prompt, (W,) lists of (start, end), ascending.
        rank: this rank.
        home: the rank whose copy of sinks and question counts.
    """

    row: RowSchedule
    spans: tuple[tuple[Span, ...], ...]
    rank: int
    home: int

    def __post_init__(self) -> None:
        if self.row.start != 0:
            raise PlanError("segments are spread over ranks one prompt at a time, without padding")
        owned = sorted(span for spans in self.spans for span in spans)
        ends = [self.row.sink_end, *(end for _, end in owned)]
        if [start for start, _ in owned] != ends[:-1] or ends[-1] != self.row.query_start:
            raise PlanError(f"the pieces {owned} do not cover the segments of {self.row} exactly once")

    @property
    def world(self) -> int:
        return len(self.spans)

    @property
    def sinks(self) -> int:
        return self.row.sink_end

    @property
    def query(self) -> int:
        return self.row.end - self.row.query_start

    @property
    def is_home(self) -> bool:
        return self.rank == self.home

    def own_of(self, rank: int) -> list[int]:
        """Positions in the prompt of a rank's own tokens, ascending."""
        return [position for start, end in self.spans[rank] for position in range(start, end)]

    @functools.cached_property
    def own(self) -> int:
        """Number of own tokens of this rank, sinks and question not counted."""
        return sum(end - start for start, end in self.spans[self.rank])

    @property
    def length(self) -> int:
        """L."""
        return self.sinks + self.own + self.query

    def positions(self, device: torch.device | None = None) -> Tensor:
        """Position in the prompt of each of the rank's tokens, (L,) int64 ascending."""
        row = self.row
        own = self.own_of(self.rank)
        positions = [*range(row.sink_end), *own, *range(row.query_start, row.end)]
        return torch.tensor(positions, dtype=torch.long, device=device)

    @functools.cached_property
    def needs(self) -> Needs:
        """What the ranks need of each other in every layer."""
        return Needs(self.row, self.spans)

    @functools.cached_property
    def seen(self) -> tuple[int, ...]:
        """Positions that this rank's pieces see, sinks and themselves aside, (X,) ascending."""
        return tuple(sorted(position for one in self.needs.seen[self.rank] for position in one))

    def _rows_of(self, positions: Sequence[int]) -> tuple[int, ...]:
        row_of = {position: row for row, position in enumerate(self.own_of(self.rank), start=self.sinks)}
        return tuple(row_of[position] for position in positions)

    @functools.cached_property
    def sent_rows(self) -> tuple[int, ...]:
        """Rows of this rank's tensors that travel to others, in the order in which they leave."""
        return self._rows_of(self.needs.sent(self.rank))

    @functools.cached_property
    def kept_rows(self) -> tuple[int, ...]:
        """Rows of this rank's tensors that its own pieces see: sinks, then tokens of earlier pieces."""
        return (*range(self.sinks), *self._rows_of(self.needs.seen[self.rank][self.rank]))

    @functools.cached_property
    def shared_order(self) -> tuple[int, ...]:
        """Places of sinks and then of the tokens of ``seen`` among ``kept_rows`` and what arrives after them."""
        mine = self.needs.seen[self.rank][self.rank]
        arrived = self.needs.arriving(self.rank)
        place = {position: at for at, position in enumerate((*mine, *arrived), start=self.sinks)}
        return (*range(self.sinks), *(place[position] for position in self.seen))

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """This rank's pieces."""
        blocks, row = [], self.sinks
        at = {position: index for index, position in enumerate(self.seen)}
        for span in self.spans[self.rank]:
            for start, end, all_before in self.row.cut_at_turns(*span):
                segment, context = self.needs.seen_by(start, all_before)
                blocks.append(Block(row, row + end - start, tuple(at[p] for p in (*context, *segment))))
                row += end - start
        return tuple(blocks)


def spans_of_plan(plan: Plan, row: RowSchedule) -> tuple[tuple[Span, ...], ...]:
    """Positions in the prompt of each rank's pieces."""
    starts = (row.sink_end, *row.segment_ends[:-1])
    return tuple(tuple((starts[p.segment] + p.start, starts[p.segment] + p.end) for p in run) for run in plan.pieces)


def rank_schedule(plan: Plan, row: RowSchedule, rank: int) -> RankSchedule:
    """What ``rank`` does with ``row`` under a plan that was made for it."""
    return RankSchedule(row, spans_of_plan(plan, row), rank, plan.home)


def pack_rank(schedule: RankSchedule) -> Tensor:
    """Flat int64 tensor on the CPU, which can be handed through a graph; see :func:`unpack_rank`."""
    row = schedule.row
    flat = [schedule.rank, schedule.home, schedule.world, row.start, row.sink_end, row.end]
    for values in (row.segment_ends, row.context, _flatten(row.turns), *map(_flatten, schedule.spans)):
        flat += [len(values), *values]
    return torch.tensor(flat, dtype=torch.long)


def _flatten(spans: Sequence[Span]) -> tuple[int, ...]:
    return tuple(edge for span in spans for edge in span)


@functools.lru_cache(maxsize=8)
def _unpack(flat: tuple[int, ...]) -> RankSchedule:
    rank, home, world, start, sink_end, end = flat[:6]
    lists, at = [], 6
    for _ in range(3 + world):
        lists.append(flat[at + 1 : at + 1 + flat[at]])
        at += 1 + flat[at]
    segment_ends, context, *edges = lists
    turns, *spans = (tuple(zip(one[::2], one[1::2], strict=True)) for one in edges)
    return RankSchedule(RowSchedule(start, sink_end, segment_ends, end, context, turns), tuple(spans), rank, home)


def unpack_rank(packed: Tensor) -> RankSchedule:
    """The schedule that :func:`pack_rank` packed. Layers of one prefill share the result."""
    return _unpack(tuple(packed.tolist()))
