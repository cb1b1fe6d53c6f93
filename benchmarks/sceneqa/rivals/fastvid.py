"""FastVID: dynamic segments, each with a share chosen by encoder attention and a share merged by density
peaks.

Source: Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models" (2025). Segments
end at the ``SEGMENTS - 1`` least similar neighbours and wherever similarity is below ``THRESHOLD``. A
segment's budget is in proportion to its frames; ``ATTENTION_SHARE`` of it goes to the tokens that the
encoder attends to most, the rest to density peaks on anchor frames, into which the segment's other tokens
are merged.

Legend: F frames, C tokens of a frame, H hidden size, n tokens of a segment.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

SEGMENTS, THRESHOLD = 8, 0.9
ATTENTION_SHARE = 0.4
ANCHOR_EVERY = 4  # frames
NEIGHBOURS = 4
ANCHOR_WEIGHT = 0.6


def segment_starts(features_FCH: Tensor) -> list[int]:
    """First frame of each segment."""
    unit = normalize(features_FCH.mean(1), dim=-1)
    similarity = (unit[1:] * unit[:-1]).sum(-1)
    least = similarity.argsort(stable=True)[: SEGMENTS - 1]
    cut = similarity < THRESHOLD
    cut[least] = True
    return [0, *(cut.nonzero()[:, 0] + 1).tolist()]


def _budgets(lengths: list[int], total: int) -> list[int]:
    """``total`` in proportion to the segments' lengths, largest remainders first."""
    exact = [total * length / sum(lengths) for length in lengths]
    budget = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: budget[i] - exact[i])
    for segment in by_remainder[: total - sum(budget)]:
        budget[segment] += 1
    return budget


def _density_peaks(tokens_nH: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` tokens with the largest density times distance to a denser token."""
    unit = normalize(tokens_nH, dim=-1)
    distance = (1 - unit @ unit.T).clamp(min=0)
    near = distance.topk(min(NEIGHBOURS, len(unit)), largest=False).values
    density = torch.exp(-(near**2).mean(1)) + torch.arange(len(unit), 0, -1) * 1e-9  # ties by order
    denser = density[None] > density[:, None]
    to_denser = distance.masked_fill(~denser, torch.inf).amin(1)
    to_denser = torch.where(to_denser.isinf(), distance.amax(), to_denser)
    return (density * to_denser).argsort(descending=True, stable=True)[:count]


def _segment(features_nH: Tensor, saliency_n: Tensor, cells: int, budget: int) -> tuple[Tensor, Tensor]:
    """Kept tokens of one segment, (budget,) ascending, and the features of the whole segment after
    merging."""
    tokens = len(features_nH)
    by_attention = saliency_n.argsort(descending=True, stable=True)[: round(ATTENTION_SHARE * budget)]
    free = torch.ones(tokens, dtype=torch.bool)
    free[by_attention] = False
    frame = torch.arange(tokens) // cells
    anchors = (free & (frame % ANCHOR_EVERY == 0)).nonzero()[:, 0]
    wanted = budget - len(by_attention)
    peaks = anchors[_density_peaks(features_nH[anchors], wanted)] if len(anchors) and wanted else anchors[:0]
    if len(peaks) < wanted:  # more budget than anchor tokens: go on with the others
        taken = torch.zeros(tokens, dtype=torch.bool)
        taken[peaks] = True
        others = (free & ~taken).nonzero()[:, 0]
        peaks = torch.cat([peaks, others[_density_peaks(features_nH[others], wanted - len(peaks))]])
    merged = features_nH.clone()
    if len(peaks):
        free[peaks] = False
        rest = free.nonzero()[:, 0]
        unit = normalize(features_nH, dim=-1)
        nearest = (unit[rest] @ unit[peaks].T).argmax(1)
        for number, peak in enumerate(peaks.tolist()):
            mine = rest[nearest == number]
            if len(mine):
                mean = features_nH[mine].mean(0)
                merged[peak] = ANCHOR_WEIGHT * features_nH[peak] + (1 - ANCHOR_WEIGHT) * mean
    return torch.cat([by_attention, peaks]).sort().values, merged


def fastvid(features_FCH: Tensor, saliency_FC: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Kept tokens, (K,) ascending, and their features, (K, H); K = floor(keep * F * C).

    Args:
        saliency_FC: attention that each token's patches receive in the encoder's last layer.
    """
    frames, cells, _ = features_FCH.shape
    starts = segment_starts(features_FCH)
    ends = [*starts[1:], frames]
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    kept, features = [], []
    for start, end, budget in zip(starts, ends, _budgets(lengths, math.floor(keep * frames * cells)), strict=True):
        index, merged = _segment(features_FCH[start:end].flatten(0, 1), saliency_FC[start:end].flatten(), cells, budget)
        kept.append(start * cells + index)
        features.append(merged[index])
    return torch.cat(kept), torch.cat(features)
