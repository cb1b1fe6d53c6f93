"""A plan: what a partition costs, as a graph of stages.

Legend: R ranks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import networkx as nx

from segmo.runtime.cost.memory import Memory, rank_memory
from segmo.runtime.partition.assignment import Assignment
from segmo.runtime.partition.exchange import Exports
from segmo.runtime.partition.stages import stages
from segmo.runtime.partition.traffic import bytes_received, exports_of

CACHES = ("gather", "sharded")


@dataclass(frozen=True)
class Plan(Assignment):
    """A partition of one prefill with its traffic, memory and predicted time."""

    @functools.cached_property
    def exports(self) -> Exports:
        """What travels between ranks in every layer, beside the question's parts."""
        return exports_of(self)

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
                joined=self.workload.tokens * self.shape.joined_bytes // max(self.shape.whole_layers, 1),
            )
            for rank, load in enumerate(self.loads)
        )

    @functools.cached_property
    def bytes_received(self) -> int:
        """Bytes that the rank with most receives: all layers, and features and cache where these travel."""
        return bytes_received(self, self.exports)

    @functools.cached_property
    def graph(self) -> nx.DiGraph:
        """Stages as nodes with ``seconds``, ``rank`` (-1 for a collective) and ``label``; edges are dependences.

        All layers of a stage are one node: layers are alike, so a rank that is last in one layer is last in all.
        """
        graph = nx.DiGraph()
        for name, rank, label, seconds, after in stages(self, self.exports):
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
