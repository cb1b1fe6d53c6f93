"""Which keys and values travel: what each rank's pieces see of the other ranks' tokens.

Legend: W ranks.

A row sees context tokens and its own segment's tokens before it, and one of text between videos all before it, so a
rank needs nothing from behind its last piece.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass

from segmo.runtime.partition.exchange import Exports
from segmo.runtime.schedule import RowSchedule

Span = tuple[int, int]


@dataclass(frozen=True)
class Needs:
    """Positions that ranks need of each other.

    Attributes:
        row: the schedule of the whole row.
        spans: the pieces of every rank as positions in the prompt, (W,) lists of (start, end), ascending.
    """

    row: RowSchedule
    spans: tuple[tuple[Span, ...], ...]

    def seen_by(self, start: int, all_before: bool = False) -> tuple[range, tuple[int, ...]]:
        """What rows from ``start`` on see before it: their segment's part, and context of earlier segments; or all."""
        if all_before:
            return range(self.row.sink_end, start), ()
        starts = (self.row.sink_end, *self.row.segment_ends[:-1])
        first = starts[bisect.bisect_right(self.row.segment_ends, start)]
        return range(first, start), self.row.context[: bisect.bisect_left(self.row.context, first)]

    @functools.cached_property
    def seen(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """``seen[rank][owner]``: positions that the rank's pieces see, sinks and themselves aside, ascending."""
        pieces = sorted((*span, owner) for owner, spans in enumerate(self.spans) for span in spans if span[1] > span[0])
        ends = [end for _, end, _ in pieces]
        everyone = []
        for spans in self.spans:
            positions: set[int] = set()
            for start, end in spans:
                for first, _, all_before in self.row.cut_at_turns(start, end):
                    positions.update(*self.seen_by(first, all_before))
            owners: list[list[int]] = [[] for _ in self.spans]
            for position in sorted(positions):
                owners[pieces[bisect.bisect_right(ends, position)][2]].append(position)
            everyone.append(tuple(map(tuple, owners)))
        return tuple(everyone)

    @functools.cached_property
    def counts(self) -> tuple[tuple[int, ...], ...]:
        """How many positions each rank gives to each, (W, W)."""
        ranks = range(len(self.spans))
        return tuple(tuple(len(self.seen[to][source]) if to != source else 0 for to in ranks) for source in ranks)

    @functools.cached_property
    def exports(self) -> tuple[tuple[int, ...], ...]:
        """Positions that each rank gives to any other, (W,) ascending."""
        ranks = range(len(self.spans))
        return tuple(
            tuple(sorted({p for to in ranks if to != source for p in self.seen[to][source]})) for source in ranks
        )

    @functools.cached_property
    def exchange(self) -> Exports:
        """How many tokens travel, and so how."""
        return Exports(
            counts=tuple(map(len, self.exports)),
            sent=tuple(map(sum, self.counts)),
            needed=tuple(map(sum, zip(*self.counts, strict=True))),
        )

    def sent(self, rank: int) -> tuple[int, ...]:
        """Positions that leave a rank, in the order in which they do."""
        if self.exchange.by_broadcast:
            return self.exports[rank]
        return tuple(p for to, seen in enumerate(self.seen) if to != rank for p in seen[rank])

    def arriving(self, rank: int) -> tuple[int, ...]:
        """Positions that are at hand after the exchange, in the order in which they come."""
        if self.exchange.by_broadcast:
            return tuple(p for positions in self.exports for p in positions)
        return tuple(p for source, positions in enumerate(self.seen[rank]) if source != rank for p in positions)
