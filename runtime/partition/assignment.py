"""Who computes what: the tokens of each rank under one partition of a prefill, and what they make it do.

Legend: R ranks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from segmo.runtime.cost.device import Device
from segmo.runtime.cost.shape import ModelShape
from segmo.runtime.partition.workload import Workload

# Flash calls that the home rank adds: the question over itself, and over the sinks where it has no segment.
HOME_BLOCKS = 2


@dataclass(frozen=True)
class Piece:
    """Tokens ``start`` to ``end`` of a segment, counted from the segment's first token."""

    segment: int
    start: int
    end: int

    @property
    def tokens(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Load:
    """What one rank does, per layer where that applies.

    Attributes:
        tokens: rows it computes, sinks and query included.
        own_pairs, own_rows: visible pairs inside its pieces (and its sinks), and the rows of those blocks.
        shared_pairs: pairs of its rows with sinks, context and earlier parts of its own segments.
        merged_rows: rows that have such pairs.
        query_pairs: pairs of the question's rows that it computes.
        blocks: flash calls.
    """

    tokens: int
    own_pairs: int
    own_rows: int
    shared_pairs: int
    merged_rows: int
    query_pairs: int
    blocks: int


@dataclass(frozen=True)
class Assignment:
    """A partition of one prefill.

    Attributes:
        workload, shape, devices: what was planned for; a device per rank.
        pieces: each rank's pieces, in order of the prompt.
        home: the rank that adds the keys of sinks and question to the question's attention, and whose copy of the
            replicated rows counts.
        cache: where keys and values are after prefill: ``"gather"`` (all on every rank) or ``"sharded"``.
        method: how the partition was found.
    """

    workload: Workload
    shape: ModelShape
    devices: tuple[Device, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    home: int
    cache: str
    method: str

    @property
    def world(self) -> int:
        return len(self.devices)

    @functools.cached_property
    def context_before(self) -> tuple[int, ...]:
        """Context tokens in the segments before each segment."""
        total, before = 0, []
        for count in self.workload.context:
            before.append(total)
            total += count
        return tuple(before)

    @functools.cached_property
    def loads(self) -> tuple[Load, ...]:
        """Work of each rank, (R,)."""
        return tuple(self._load(rank) for rank in range(self.world))

    def _load(self, rank: int) -> Load:
        work = self.workload
        own = sum(piece.tokens for piece in self.pieces[rank])
        causal = sum(piece.tokens * (piece.tokens + 1) // 2 for piece in self.pieces[rank])
        shared = merged = calls = 0
        for piece in self.pieces[rank]:
            keys = work.sinks + self.context_before[piece.segment] + piece.start
            shared += piece.tokens * keys
            merged += piece.tokens * (keys > 0)
            calls += 1 + (keys > 0)
        query_keys = work.query * own
        if rank == self.home:
            query_keys += work.query * work.sinks + work.query * (work.query + 1) // 2
        return Load(
            tokens=work.sinks + work.query + own,
            own_pairs=causal + work.sinks * (work.sinks + 1) // 2,
            own_rows=own + work.sinks,
            shared_pairs=shared,
            merged_rows=merged,
            query_pairs=query_keys,
            blocks=calls + (work.sinks > 0) + (own > 0) + HOME_BLOCKS * (rank == self.home),
        )

    @property
    def encoded(self) -> int:
        """Video tokens that each rank encodes: an even share of frames, whose scenes are not yet known."""
        frame = self.workload.tokens_per_frame
        return -(-self.workload.encoded // (frame * self.world)) * frame
