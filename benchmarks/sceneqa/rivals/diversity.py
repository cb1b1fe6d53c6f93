"""Rivals of 2025 and 2026 that choose video tokens before the first layer by what is unlike, new or asked for.

Written from the papers' descriptions, not from their code: where a description leaves a formula open, the docstring
says what was taken. Each takes the features of a video, and the question's embeddings where the method looks at it,
and gives indices of the kept tokens, ascending, (K,), with K = floor(keep * F * C). What all features of
the video have in common is taken off before they are compared with words, as for SegMo's own scorer.

Legend: F frames, C tokens of a frame, H hidden size, T = F * C tokens, Q question tokens, K kept tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

FRAME_TEMPERATURE = 0.01  # of VidCom2's softmax over frames


def vidcom2(features_FCH: Tensor, keep: float, seed: int) -> Tensor:
    """VidCom2: frames unlike the whole video get more, and in them tokens unlike frame and video stay.

    Source: Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language
    Models" (2025): a frame's uniqueness is the mean of one minus the cosine of its
    tokens to the video's mean token; its softmax (``FRAME_TEMPERATURE``) scales each frame's budget; a
    token's score is its distance to the mean token of the video and of its frame together.
    """
    frames, cells, _ = features_FCH.shape
    unit = normalize(features_FCH, dim=-1)
    video = normalize(unit.mean(dim=(0, 1)), dim=-1)
    frame = normalize(unit.mean(dim=1), dim=-1)
    to_video = 1 - unit @ video
    score = to_video + 1 - (unit * frame[:, None]).sum(-1)
    unique = to_video.mean(dim=1)
    scale = ((unique - unique.max()) / FRAME_TEMPERATURE).softmax(0)
    share = keep * (1 + scale - scale.mean())
    total = math.floor(keep * frames * cells)
    exact = (share / share.sum() * total).clamp(max=cells)
    budget = exact.floor().long()
    order = (budget - exact).argsort(stable=True).tolist()
    while (missing := total - int(budget.sum())) > 0:
        for index in [frame for frame in order if budget[frame] < cells][:missing]:
            budget[index] += 1
    ranked = score.argsort(dim=1, descending=True, stable=True)
    kept = [index * cells + ranked[index, : int(budget[index])] for index in range(frames)]
    return torch.cat(kept).sort().values


def cdpruner(features_FCH: Tensor, question_QH: Tensor, keep: float) -> Tensor:
    """CDPruner: the most likely set of a determinantal process whose kernel is weighted by relevance to the question.

    Source: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs"
    (2025), and the greedy inference of Chen et al. (2018): relevance is the mean cosine to the question's tokens,
    brought to [0, 1]; kernel L = diag(r) S diag(r).
    """
    unit = normalize(features_FCH.flatten(0, 1), dim=-1)
    relevance = word_fit(features_FCH, question_QH).mean(dim=2).flatten()
    low, high = relevance.min(), relevance.max()
    relevance = ((relevance - low) / (high - low).clamp(min=1e-12)).clamp(min=1e-6)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    return greedy_determinant(kernel, math.floor(keep * len(unit)))


def greedy_determinant(kernel_TT: Tensor, count: int) -> Tensor:
    """Indices whose determinant is largest, taken greedily, ascending, ties by order (Chen et al., 2018)."""
    kernel = kernel_TT.double()
    gain, least = kernel.diagonal().clone(), 1e-9 * float(kernel.diagonal().max())
    basis = torch.zeros(count, len(gain), dtype=torch.double)
    open_T = torch.ones(len(gain), dtype=torch.bool)
    for step in range(count):
        best = int(gain.masked_fill(~open_T, -torch.inf).argmax())
        if gain[best] > least:  # otherwise what is left lies in the span of what was taken
            basis[step] = (kernel[best] - basis[:step].T @ basis[:step, best]) / gain[best].sqrt()
            gain = (gain - basis[step] ** 2).clamp(min=0)
        open_T[best] = False
    return (~open_T).nonzero()[:, 0]


def echoprune(features_FCH: Tensor, question_QH: Tensor, keep: float) -> Tensor:
    """EchoPrune: tokens that the question asks for and that the frame before does not echo.

    Source: Li et al., "EchoPrune: Interpreting Redundancy as Temporal Echoes for Efficient VideoLLMs" (2026): relevance
    to the question plus temporal reconstruction error by correspondence with the frame before. Taken here: relevance is
    the largest cosine to a word, the error one minus the largest cosine to a token of the frame before, both
    standardised.
    """
    frames, cells, _ = features_FCH.shape
    unit = normalize(features_FCH, dim=-1)
    error = torch.ones(frames, cells)
    error[1:] = 1 - (unit[1:] @ unit[:-1].transpose(1, 2)).amax(dim=2)
    relevance = word_fit(features_FCH, question_QH).amax(dim=2)
    score = _standard(relevance) + _standard(error)
    count = math.floor(keep * frames * cells)
    return score.flatten().argsort(descending=True, stable=True)[:count].sort().values


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std().clamp(min=1e-12)


def word_fit(features_FCH: Tensor, question_QH: Tensor) -> Tensor:
    """Cosine of each token, without the video's mean feature, with each of the question's tokens, (F, C, Q)."""
    centred = features_FCH - features_FCH.mean(dim=(0, 1))
    return normalize(centred, dim=-1) @ normalize(question_QH, dim=-1).T
