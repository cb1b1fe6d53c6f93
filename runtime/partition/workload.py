"""What one prefill asks for, in numbers, and the units that a partition may not cut.

Legend: U units, a unit being a whole segment or a part of one that is large enough to be cut inside.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmo.errors import PlanError
from segmo.runtime.cost.model import CostModel
from segmo.runtime.schedule import RowSchedule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A segment that may be cut is divided so that a rank's share has about this many units.
UNITS_PER_SHARE = 8


@dataclass(frozen=True)
class Workload:
    """One prefill after selection.

    Attributes:
        sinks, query: tokens that every rank computes.
        segments: kept tokens of each segment.
        context: context tokens of each segment; they are taken to lie at its start, as head frames do, which matters
            where a segment is cut.
        encoded: video tokens before selection whose frames are encoded, 0 when the features are given.
        tokens_per_frame: video tokens of a frame before selection.

    Raises:
        PlanError: a number of tokens is out of range.
    """

    sinks: int
    query: int
    segments: tuple[int, ...]
    context: tuple[int, ...]
    encoded: int = 0
    tokens_per_frame: int = 1

    def __post_init__(self) -> None:
        sizes = {"sinks": self.sinks, "query": self.query, "encoded": self.encoded}
        for name, tokens in sizes.items():
            if tokens < 0:
                raise PlanError(f"{name} is {tokens}; it must be a number of tokens >= 0")
        if self.tokens_per_frame < 1:
            raise PlanError(f"a frame has at least one token, got {self.tokens_per_frame}")
        if len(self.segments) != len(self.context):
            raise PlanError(f"{len(self.segments)} segments but {len(self.context)} context counts: one of each is due")
        if any(not 0 <= c <= n for c, n in zip(self.context, self.segments, strict=True)):
            raise PlanError("a segment cannot hold more context tokens than tokens, or fewer than none")

    @property
    def tokens(self) -> int:
        """Kept tokens of the whole prompt."""
        return self.sinks + self.query + sum(self.segments)

    @classmethod
    def of_schedule(cls, row: RowSchedule) -> Workload:
        """The decoder's work for one row of a schedule; its features are taken as given."""
        starts = (row.sink_end, *row.segment_ends[:-1])
        spans = list(zip(starts, row.segment_ends, strict=False))
        return cls(
            sinks=row.sink_end - row.start,
            query=row.end - row.query_start,
            segments=tuple(end - start for start, end in spans),
            context=tuple(sum(start <= p < end for p in row.context) for start, end in spans),
        )


@dataclass(frozen=True)
class Units:
    """Consecutive parts of the segments, (U,) each.

    Attributes:
        segment: index of the segment. offset: tokens of that segment before the unit. tokens: its own tokens.
        context: context tokens in it. outside: context tokens of earlier segments.
    """

    segment: Ints
    offset: Ints
    tokens: Ints
    context: Ints
    outside: Ints

    def __len__(self) -> int:
        return len(self.tokens)

    def seconds(self, cost: CostModel, load: Workload) -> Floats:
        """Seconds of each unit on one device, (U,): its rows, and the question's rows over its keys."""
        n = self.tokens.astype(np.float64)
        shared = self.offset + self.outside + load.sinks
        causal = n * (n + 1) / 2
        pairs = causal + n * shared + n * load.query
        calls = 1 + (shared > 0)
        parts = ((1,), (0, 1), (0, 0, 1), (0, 0, 0, 1))
        per_pair, per_row, per_call, per_merge = (cost.attention_seconds(*part) for part in parts)
        seconds = (cost.dense_seconds(1) + per_row + per_merge * (shared > 0)) * n + per_pair * pairs + per_call * calls
        return np.asarray(seconds)

    def bytes(self, cost: CostModel, cached: bool) -> Floats:
        """Bytes that each unit adds to its rank, (U,): activations, and its cache if that stays there."""
        shape = cost.shape
        per_token = shape.activation_bytes + (shape.kv_bytes * shape.layers if cached else 0)
        return np.asarray(self.tokens * float(per_token))

    def entry_seconds(self, cost: CostModel, world: int) -> Floats:
        """Extra seconds of a run that begins at each unit, (U,).

        A run that begins inside a segment must be given the keys and values of its earlier part in every
        layer.
        """
        per_layer = [
            cost.share_seconds(float(tokens * cost.shape.kv_bytes), 1, world) if tokens else 0.0
            for tokens in self.offset.tolist()
        ]
        return cost.shape.layers * np.asarray(per_layer)


def divide(load: Workload, world: int, split: bool) -> Units:
    """Units of a workload; with ``split``, segments above a rank's share of tokens are divided.

    Args:
        world: number of ranks.
    """
    share = sum(load.segments) / world
    rows: list[tuple[int, int, int, int, int]] = []
    outside = 0
    for segment, (tokens, context) in enumerate(zip(load.segments, load.context, strict=True)):
        parts = 1
        if split and tokens > share:
            parts = min(tokens, math.ceil(tokens / share * UNITS_PER_SHARE))
        edges = [tokens * part // parts for part in range(parts + 1)]
        for start, end in itertools.pairwise(edges):
            own_context = min(max(context - start, 0), end - start)
            rows.append((segment, start, end - start, own_context, outside))
        outside += context
    columns = np.asarray(rows, dtype=np.int64).reshape(-1, 5).T
    return Units(*columns)
