"""A plan: which rank computes what, and what that costs as a graph of stages.

Legend: R ranks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from segmo.runtime.cost.device import Device
from segmo.runtime.cost.memory import Memory, rank_memory
from segmo.runtime.cost.model import CostModel
from segmo.runtime.cost.shape import ModelShape
from segmo.runtime.partition.exchange import Exports, parts_are_gathered
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
        exported: tokens whose keys and values it gives to the others.
    """

    tokens: int
    own_pairs: int
    own_rows: int
    shared_pairs: int
    merged_rows: int
    query_pairs: int
    blocks: int
    exported: int


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

    def _exported(self, rank: int) -> int:
        """Context tokens of a rank and its pieces that a later piece of the same segment must see."""
        last = self.workload.segments
        total = 0
        for piece in self.pieces[rank]:
            if piece.end < last[piece.segment]:
                total += piece.tokens
            else:
                total += min(max(self.workload.context[piece.segment] - piece.start, 0), piece.tokens)
        return total

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
            exported=self._exported(rank),
        )

    @functools.cached_property
    def exports(self) -> Exports:
        """What travels between ranks in every layer, beside the question's parts."""
        return Exports.of([load.exported for load in self.loads])

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
                received=self.exports.total,
                features=self.workload.encoded,
            )
            for load in self.loads
        )

    def bytes_received(self) -> int:
        """Bytes that the rank with most receives: all layers, and features and cache where these travel."""
        if self.world == 1:
            return 0
        others = self.world - 1
        context = max(self.exports.received(rank) for rank in range(self.world)) * self.shape.kv_bytes
        question = self.workload.query * self.shape.partial_bytes
        question *= others if parts_are_gathered(self.world) else 2
        total = self.shape.layers * (context + question)
        total += self._scoring_bytes() * others + self._feature_bytes()
        if self.cache == "gather":
            total += others * self._cache_bytes()
        return total

    def _scoring_bytes(self) -> int:
        """Bytes that a rank brings so that all can score: a number per token, and per frame a fit for each word."""
        frames = self.encoded // self.workload.tokens_per_frame
        return 4 * (self.encoded + frames * (1 + self.workload.query))

    def _feature_bytes(self) -> int:
        """Bytes of the features that a rank receives: the frame before its own, and kept tokens encoded elsewhere.

        Kept tokens are taken to be spread evenly over the frames.
        """
        if not self.workload.encoded or self.world == 1:
            return 0
        ends = list(itertools.accumulate(self.workload.segments))
        kept, most = ends[-1] if ends else 0, 0
        for rank, run in enumerate(self.pieces):
            first, last = kept * rank // self.world, kept * (rank + 1) // self.world
            spans = [(ends[p.segment] - self.workload.segments[p.segment] + p.start, p.tokens) for p in run]
            here = sum(max(0, min(start + count, last) - max(start, first)) for start, count in spans)
            most = max(most, sum(count for _, count in spans) - here)
        return (most + self.workload.tokens_per_frame) * self.shape.hidden * self.shape.value_bytes

    def _cache_bytes(self) -> int:
        largest = max(load.tokens for load in self.loads)
        return largest * self.shape.kv_bytes * self.shape.layers

    @functools.cached_property
    def graph(self) -> nx.DiGraph:
        """Stages as nodes with ``seconds``, ``rank`` (-1 for a collective) and ``label``; edges are
        dependences.

        All layers of a stage are one node: layers are alike, so a rank that is last in one layer is last in
        all.
        """
        graph = nx.DiGraph()
        for name, rank, label, seconds, after in self._stages():
            graph.add_node(name, seconds=seconds, rank=rank, label=label)
            graph.add_edges_from((before, name) for before in after)
        return graph

    def _stages(self) -> Iterator[tuple[str, int, str, float, list[str]]]:
        """Stages as (name, rank, label, seconds, names of the stages before)."""
        ranks, layers = range(self.world), self.shape.layers
        costs = [CostModel(self.shape, device) for device in self.devices]
        slowest_link = min(self.devices, key=lambda d: d.link_bytes_per_s)
        link = CostModel(self.shape, slowest_link)
        frame = self.workload.tokens_per_frame

        def gather(bytes_per_rank: float, times: int) -> float:
            return times * link.gather_seconds(bytes_per_rank, self.world) if bytes_per_rank else 0.0

        for rank, cost in enumerate(costs):
            yield f"encode {rank}", rank, "encode", cost.vision_seconds(self.encoded, frame), []
        features = gather(self._scoring_bytes(), 1)
        if self.world > 1:
            features += link.share_seconds(self._feature_bytes(), 1, self.world) if self.workload.encoded else 0.0
        yield "exchange features", -1, "features", features, [f"encode {rank}" for rank in ranks]
        for rank, (cost, load) in enumerate(zip(costs, self.loads, strict=True)):
            dense = cost.dense_seconds(load.tokens) + cost.layer_overhead_seconds()
            yield f"dense {rank}", rank, "dense", dense, ["exchange features"]
        context = layers * self._context_seconds(link)
        yield "gather context", -1, "context", context, [f"dense {rank}" for rank in ranks]
        for rank, (cost, load) in enumerate(zip(costs, self.loads, strict=True)):
            query = cost.attention_seconds(load.query_pairs)
            yield f"query {rank}", rank, "query", query, [f"dense {rank}"]
            own = cost.attention_seconds(load.own_pairs, load.own_rows, load.blocks)
            yield f"own {rank}", rank, "own", own, [f"query {rank}"]
            shared = cost.attention_seconds(load.shared_pairs, merged=load.merged_rows)
            yield f"shared {rank}", rank, "shared", shared, [f"own {rank}", "gather context"]
        partials = layers * self._question_seconds(link)
        yield "merge question", -1, "merge", partials, [f"query {rank}" for rank in ranks]
        last = [*(f"shared {rank}" for rank in ranks), "merge question"]
        cache = gather(self._cache_bytes(), 1) if self.cache == "gather" else 0.0
        yield "gather cache", -1, "cache", cache, last

    def _context_seconds(self, link: CostModel) -> float:
        """Exchange of exported keys and values in one layer."""
        exports, size = self.exports, self.shape.kv_bytes
        if self.world == 1 or exports.total == 0:
            return 0.0
        if exports.by_broadcast:
            return link.share_seconds(exports.total * size, exports.sources, self.world)
        return link.gather_seconds(exports.largest * size, self.world)

    def _question_seconds(self, link: CostModel) -> float:
        """Exchange of the question's parts in one layer."""
        size = self.workload.query * self.shape.partial_bytes
        if self.world == 1 or size == 0:
            return 0.0
        if parts_are_gathered(self.world):
            return link.gather_seconds(size, self.world)
        return link.reduce_seconds(size, self.world)

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
