"""What travels between ranks under a plan: tokens in every layer, and bytes of the whole prefill.

Legend: W ranks.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np

from segmo.runtime.partition.assignment import Assignment
from segmo.runtime.partition.exchange import Exports, parts_are_gathered


def exports_of(plan: Assignment) -> Exports:
    """Keys and values that ranks need of each other; what :class:`segmo.runtime.distributed.needs.Needs` counts.

    A context token is needed by every other rank with a later piece, all tokens of a piece by those that have a later
    piece of its segment.
    """
    work, world = plan.workload, plan.world
    latest_W = np.array([max(((p.segment, p.start) for p in run), default=(-1, 0)) for run in plan.pieces])
    parts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for rank, run in enumerate(plan.pieces):
        for piece in run:
            parts[piece.segment].append((piece.start, rank))
    counts, sent, needed = [0] * world, [0] * world, np.zeros(world, dtype=np.int64)
    for source, run in enumerate(plan.pieces):
        for piece in run:
            context = min(max(work.context[piece.segment] - piece.start, 0), piece.tokens)
            later = [rank for start, rank in parts[piece.segment] if start >= piece.end]
            if not context and not later:
                continue
            segment_W, start_W = latest_W.T
            sees_W = (segment_W > piece.segment) | ((segment_W == piece.segment) & (start_W > piece.start))
            wanted_W = np.where(sees_W, context, 0)
            wanted_W[later] = piece.tokens
            wanted_W[source] = 0
            counts[source] += int(wanted_W.max())
            sent[source] += int(wanted_W.sum())
            needed += wanted_W
    return Exports(tuple(counts), tuple(sent), tuple(needed.tolist()))


def bytes_received(plan: Assignment, exports: Exports) -> int:
    """Bytes that the rank with most receives: all layers, and features and cache where these travel."""
    if plan.world == 1:
        return 0
    others, shape = plan.world - 1, plan.shape
    context = max(exports.received(rank) for rank in range(plan.world)) * shape.kv_bytes
    question = plan.workload.query * shape.partial_bytes
    question *= others if parts_are_gathered(plan.world) else 2
    total = shape.segment_layers * (context + question) + others * joined_bytes(plan)
    total += scoring_bytes(plan) * others + feature_bytes(plan)
    if plan.cache == "gather":
        total += others * cache_bytes(plan)
    return total


def scoring_bytes(plan: Assignment) -> int:
    """Bytes that a rank brings so that all can score: a number per token, and per frame a fit for each word."""
    frames = plan.encoded // plan.workload.tokens_per_frame
    return 4 * (plan.encoded + frames * (1 + plan.workload.query))


def feature_bytes(plan: Assignment) -> int:
    """Bytes of the features that a rank receives: the frame before its own, and kept tokens encoded elsewhere.

    Kept tokens are taken to be spread evenly over the frames.
    """
    work, world = plan.workload, plan.world
    if not work.encoded or world == 1:
        return 0
    ends = list(itertools.accumulate(work.segments))
    kept, most = ends[-1] if ends else 0, 0
    for rank, run in enumerate(plan.pieces):
        first, last = kept * rank // world, kept * (rank + 1) // world
        spans = [(ends[p.segment] - work.segments[p.segment] + p.start, p.tokens) for p in run]
        here = sum(max(0, min(start + count, last) - max(start, first)) for start, count in spans)
        most = max(most, sum(count for _, count in spans) - here)
    return (most + work.tokens_per_frame) * plan.shape.hidden * plan.shape.value_bytes


def joined_bytes(plan: Assignment) -> int:
    """Bytes that a rank brings to all layers without segments, which need every token; padding included."""
    return max(load.tokens for load in plan.loads) * plan.shape.joined_bytes


def cache_bytes(plan: Assignment) -> int:
    """Bytes of the cache that a rank brings when it is gathered, padding included; layers without segments have it."""
    largest = max(load.tokens for load in plan.loads)
    return largest * plan.shape.kv_bytes * plan.shape.segment_layers
