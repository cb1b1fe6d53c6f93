"""A plan: which rank computes what, and what that costs as a graph of stages.

Legend: R ranks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import networkx as nx

from segmo.runtime.cost.device import Device
from segmo.runtime.cost.memory import Memory, rank_memory
from segmo.runtime.cost.shape import ModelShape
from segmo.runtime.partition.exchange import Exports
from segmo.runtime.partition.stages import stages
from segmo.runtime.partition.traffic import bytes_received, exports_of
from segmo.runtime.partition.workload import Workload

CACHES = ("gather", "sharded")

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
class Plan:
    """A partition of one prefill.

    Attributes:
        workload, shape, devices: what was planned for; a device per rank.
        pieces: each rank's pieces, in order of the prompt.
        home: the rank that adds the keys of sinks and question to the question's attention, and whose copy of
        the
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

    @functools.cached_property
    def exports(self) -> Exports:
        """What travels between ranks in every layer, beside the question's parts."""
        return exports_of(self)

    @property
    def encoded(self) -> int:
        """Video tokens that each rank encodes: an even share of frames, whose scenes are not yet known."""
        frame = self.workload.tokens_per_frame
        return -(-self.workload.encoded // (frame * self.world)) * frame

    @functools.cached_property
    def memory(self) -> tuple[Memory, ...]:
        """Bytes of each rank, (R,)."""
        return tuple(
            rank_memory(
                self.shape,
                tokens=load.tokens,
                cached=self.workload.tokens if self.cache == "gather" else load.tokens,
                received=self.exports.received(rank),
                features=self.workload.encoded,
            )
            for rank, load in enumerate(self.loads)
        )

    @functools.cached_property
    def bytes_received(self) -> int:
        """Bytes that the rank with most receives: all layers, and features and cache where these travel."""
        return bytes_received(self)

    @functools.cached_property
    def graph(self) -> nx.DiGraph:
        """Stages as nodes with ``seconds``, ``rank`` (-1 for a collective) and ``label``; edges are
        dependences.

        All layers of a stage are one node: layers are alike, so a rank that is last in one layer is last in
        all.
        """
        graph = nx.DiGraph()
        for name, rank, label, seconds, after in stages(self):
            graph.add_node(name, seconds=seconds, rank=rank, label=label)
            graph.add_edges_from((before, name) for before in after)
        return graph

    @functools.cached_property
    def times(self) -> dict[str, tuple[float, float]]:
        """Start and end of each stage in seconds, when each starts as soon as it can."""
        times: dict[str, tuple[float, float]] = {}
        for name in nx.topological_sort(self.graph):
            start = max((times[before][1] for before in self.graph.predecessors(name)), default=0.0)
            times[name] = (start, start + self.graph.nodes[name]["seconds"])
        return times

    @property
    def seconds(self) -> float:
        """Predicted time of the prefill: the length of the critical path."""
        return self.times["gather cache"][1]

    @property
    def critical_path(self) -> list[str]:
        """Stages of the critical path that take time, first to last."""
        name = "gather cache"
        path = [name]
        while before := list(self.graph.predecessors(name)):
            name = max(before, key=lambda stage: self.times[stage][1])
            path.append(name)
        return [stage for stage in reversed(path) if self.graph.nodes[stage]["seconds"] > 0]

    @functools.cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds in which each rank computes, (R,)."""
        seconds = [0.0] * self.world
        for _, stage in self.graph.nodes(data=True):
            if stage["rank"] >= 0:
                seconds[stage["rank"]] += stage["seconds"]
        return tuple(seconds)

    @property
    def imbalance(self) -> float:
        """Largest over mean of the ranks' busy time, 1 when all finish together."""
        return max(self.busy) / (sum(self.busy) / self.world)
