"""FlashVID: tokens that stand for their frame, and trees of what is left, each merged into its mean.

Source: Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token
Merging" (2026), from its description, not from its code. Of each frame the tokens stay that are most unlike each other
(max-min diversity), where encoder attention and relevance to the segment weigh the distances: ``ALPHA`` of the budget.
Of the other tokens each hangs on the most similar one in the frame before, if their cosine is ``THRESHOLD`` or more; a
tree becomes its mean. Segments are FastVID's. Taken here: a tree stands where it starts, the largest trees stay, and if
there are fewer than the budget has room for, the tokens of trees that the encoder attends to most stand for themselves.
The pruning inside the language model, which the paper adds, is left out, as for the other rivals.

Legend: F frames, C tokens of a frame, H hidden size, T = F * C tokens, K kept tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rivals.fastvid import segment_starts

ALPHA, THRESHOLD = 0.7, 0.8


def most_diverse(distance_CC: Tensor, count: int) -> list[int]:
    """``count`` tokens, greedily: the one farthest from its nearest, then always the one farthest from those taken."""
    cells = len(distance_CC)
    nearest = distance_CC.masked_fill(torch.eye(cells, dtype=torch.bool), torch.inf).amin(dim=1)
    taken: list[int] = []
    for step in range(count):
        best = int(nearest.masked_fill(torch.isin(torch.arange(cells), torch.tensor(taken)), -1).argmax())
        taken.append(best)
        nearest = distance_CC[:, best] if step == 0 else torch.minimum(nearest, distance_CC[:, best])
    return taken


def _chosen(unit_FCH: Tensor, saliency_FC: Tensor, segment_F: Tensor, total: int) -> Tensor:
    """Flags (F, C) of ``total`` diverse tokens, spread evenly over the frames."""
    frames, cells, _ = unit_FCH.shape
    chosen = torch.zeros(frames, cells, dtype=torch.bool)
    means = torch.zeros(int(segment_F[-1]) + 1, unit_FCH.shape[-1]).index_add_(0, segment_F, unit_FCH.mean(dim=1))
    event_FC = (unit_FCH * normalize(means, dim=-1)[segment_F][:, None]).sum(-1).clamp(min=0)
    weight_FC = event_FC * saliency_FC / saliency_FC.sum(dim=1, keepdim=True).clamp(min=1e-12)
    for frame in range(frames):
        count = (frame + 1) * total // frames - frame * total // frames
        if count:
            distance = (1 - unit_FCH[frame] @ unit_FCH[frame].T).clamp(min=0) * weight_FC[frame][:, None]
            chosen[frame, most_diverse(distance, count)] = True
    return chosen


def redundancy_trees(unit_FCH: Tensor, free_FC: Tensor, segment_F: Tensor) -> Tensor:
    """Root of each token's tree, (T,) index; -1 for tokens that are not free."""
    frames, cells, _ = unit_FCH.shape
    root = torch.where(free_FC, torch.arange(frames * cells).view(frames, cells), -1)
    for frame in range(1, frames):
        if segment_F[frame] != segment_F[frame - 1] or not bool(free_FC[frame - 1].any()):
            continue
        alike = (unit_FCH[frame] @ unit_FCH[frame - 1].T).masked_fill(~free_FC[frame - 1], -torch.inf)
        best, parent = alike.max(dim=1)
        root[frame] = torch.where(free_FC[frame] & (best >= THRESHOLD), root[frame - 1][parent], root[frame])
    return root.flatten()


def flashvid(features_FCH: Tensor, saliency_FC: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Kept tokens, (K,) ascending, and their features, (K, H); K = floor(keep * F * C).

    Args:
        saliency_FC: attention that each token's patches receive in the encoder's last layer.
    """
    frames, cells, hidden = features_FCH.shape
    total = math.floor(keep * frames * cells)
    starts = torch.zeros(frames, dtype=torch.long)
    starts[segment_starts(features_FCH)[1:]] = 1
    segment_F, unit = starts.cumsum(0), normalize(features_FCH, dim=-1)
    chosen = _chosen(unit, saliency_FC, segment_F, round(ALPHA * total))
    root_T = redundancy_trees(unit, ~chosen, segment_F)
    size_T = torch.bincount(root_T[root_T >= 0], minlength=frames * cells)
    sum_TH = torch.zeros(frames * cells, hidden)
    sum_TH.index_add_(0, root_T[root_T >= 0], features_FCH.flatten(0, 1)[root_T >= 0])
    kept = chosen.flatten()
    roots = size_T.argsort(descending=True, stable=True)[: min(total - int(kept.sum()), int((size_T > 0).sum()))]
    features = features_FCH.flatten(0, 1).clone()
    features[roots] = sum_TH[roots] / size_T[roots, None]
    kept[roots] = True
    left = saliency_FC.flatten().masked_fill(kept, -torch.inf).argsort(descending=True, stable=True)
    kept[left[: total - int(kept.sum())]] = True
    index = kept.nonzero()[:, 0]
    return index, features[index]
