"""Rivals that choose video tokens before the first layer, without looking at the question.

Each takes the features of a video and gives indices of the kept tokens, ascending, (K,).

Legend: F frames, C tokens of a frame, H hidden size, K kept tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


def uniform_frames(features_FCH: Tensor, keep: float, seed: int) -> Tensor:
    """Whole frames at a steady rate: ``floor(keep * F)`` of them, from the middle of equal stretches."""
    frames, cells, _ = features_FCH.shape
    count = max(1, math.floor(keep * frames))
    chosen = ((torch.arange(count) + 0.5) * frames / count).long()
    return (chosen[:, None] * cells + torch.arange(cells)).flatten()


def last_frames(features_FCH: Tensor, keep: float, seed: int) -> Tensor:
    """The last ``floor(keep * F)`` frames, whole: what a streaming method must beat."""
    frames, cells, _ = features_FCH.shape
    count = max(1, math.floor(keep * frames))
    return torch.arange((frames - count) * cells, frames * cells)


def random_tokens(features_FCH: Tensor, keep: float, seed: int) -> Tensor:
    """``floor(keep * F * C)`` tokens, each as likely as any other."""
    total = features_FCH.shape[0] * features_FCH.shape[1]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[: math.floor(keep * total)].sort().values


def evs(features_FCH: Tensor, keep: float, seed: int) -> Tensor:
    """Efficient Video Sampling: the tokens that differ most from the same cell of the frame before.

    Source: Bagrov et al., "Efficient Video Sampling" (2025), as built into vLLM: 1 - cosine; the first frame
    is kept; one threshold for the whole video, set so that ``floor(keep * F * C)`` tokens stay, and at least
    a frame.
    """
    frames, cells, _ = features_FCH.shape
    unit = normalize(features_FCH, dim=-1)
    change = torch.full((frames, cells), torch.inf)
    change[1:] = 1 - (unit[1:] * unit[:-1]).sum(-1)
    count = max(cells, math.floor(keep * frames * cells))
    return change.flatten().argsort(descending=True, stable=True)[:count].sort().values
