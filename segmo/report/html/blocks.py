"""Which segment sees what: the attention rule as a square of blocks, keys from left to right, queries downwards.

Legend: K kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from segmo.report.prefill import Prefill
from segmo.runtime.layout import QUERY, SINK, TURN
from segmo.runtime.schedule import attention_schedule, visible_pairs

SIDE = 400.0
LEAST = 0.012  # share of the side that a block takes at least, so that it can be seen


@dataclass(frozen=True)
class Block:
    """A polygon of the picture: what it is ("sink", "segment", "context", "query"), its corners and its words."""

    kind: str
    points: str
    title: str


@dataclass(frozen=True)
class Picture:
    """The rule for one prefill.

    Attributes:
        blocks: in the order in which they are painted.
        pairs: visible pairs of tokens. causal: pairs of full causal attention.
        segments, context: how many segments, and context tokens.
        stretched: whether some blocks are drawn larger than they are.
    """

    blocks: tuple[Block, ...]
    pairs: int
    causal: int
    segments: int
    context: int
    stretched: bool


def picture(prefill: Prefill) -> Picture | None:
    """The blocks of row 0, None when attention was left as it was."""
    if prefill.segment is None:
        return None
    segment_K = prefill.segment[0]
    context_K = prefill.context[0] if prefill.context is not None else torch.zeros_like(segment_K, dtype=torch.bool)
    values, counts = torch.unique_consecutive(segment_K, return_counts=True)
    bounds = [0, *accumulate(counts.tolist())]
    scale = _Scale(bounds)
    runs = list(zip(values.tolist(), pairwise(bounds), strict=True))
    blocks = [Block(*_shape(kind, start, end, scale)) for kind, (start, end) in runs if kind not in (QUERY, TURN)]
    inside = context_K & (segment_K >= 0)
    for start, end in _runs(inside.tolist()):
        blocks.append(_column("context", start, end, scale, f"context: {end - start:,} tokens that all later ones see"))
    for kind, (start, end) in runs:
        if kind == TURN:
            blocks.append(
                _column("context", start, end, scale, f"text between videos: {end - start:,} tokens, seen by all")
            )
        if kind in (QUERY, TURN):
            blocks.append(Block(*_shape(kind, start, end, scale)))
    return Picture(
        tuple(blocks),
        visible_pairs(attention_schedule(segment_K[None], inside[None], None)),
        len(segment_K) * (len(segment_K) + 1) // 2,
        int(segment_K.max()) + 1,
        int(inside.sum()),
        scale.stretched,
    )


class _Scale:
    """From token positions to places in the picture, piece by piece, so that no block is too small to see."""

    def __init__(self, bounds: Sequence[int]) -> None:
        total = bounds[-1]
        shares = [(end - start) / total for start, end in pairwise(bounds)]
        least = min(LEAST, 0.5 / len(shares))
        wide = [max(share, least) for share in shares]
        self.stretched = any(share < least for share in shares)
        self.bounds = bounds
        self.places = [0.0, *accumulate(SIDE * share / sum(wide) for share in wide)]

    def __call__(self, token: int) -> float:
        for (start, end), (low, high) in zip(pairwise(self.bounds), pairwise(self.places), strict=True):
            if token <= end:
                return round(low + (high - low) * (token - start) / (end - start), 2)
        return SIDE


def _shape(kind: int, start: int, end: int, scale: _Scale) -> tuple[str, str, str]:
    a, b = scale(start), scale(end)
    tokens = f"{end - start:,} tokens"
    if kind == SINK:
        block = _column("sink", start, end, scale, f"text before the video: {tokens}, seen by all")
        return block.kind, block.points, block.title
    if kind in (QUERY, TURN):
        what = "text behind the video" if kind == QUERY else "text between videos"
        return "query", _points((0, a), (a, a), (b, b), (0, b)), f"{what}: {tokens}, which see everything before"
    return "segment", _points((a, a), (b, b), (a, b)), f"segment {kind}: {tokens}, which see their own segment"


def _column(kind: str, start: int, end: int, scale: _Scale, title: str) -> Block:
    a, b = scale(start), scale(end)
    return Block(kind, _points((a, a), (b, b), (b, SIDE), (a, SIDE)), title)


def _points(*corners: tuple[float, float]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Start and end of each run of set flags."""
    edges = [at for at, (one, other) in enumerate(pairwise([False, *flags, False])) if one != other]
    return list(zip(edges[::2], edges[1::2], strict=True))
