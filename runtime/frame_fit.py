"""How well a video's frames fit the words of a question: cosines of features with words, pooled over a frame.

Legend: B batch, N prompt tokens of a row, M those of the batch, Q question tokens of a row, W those of the batch,
T video tokens, F frames, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.features import CHUNK, DEVICE_VALUES, blocks
from segmo.runtime.host import Array, give, here
from segmo.runtime.video_runs import places
from segmo.runtime.video_tokens import Room, VideoTokens, take

FITS = 2**21  # cosines of words with tokens that are held at a time: 8 MB


def feature_sum(embeds_NH: Tensor, at_T: Array) -> Tensor:
    """Sum of the features of these tokens, (H,) fp32."""
    total_H = torch.zeros(embeds_NH.shape[1], device=embeds_NH.device, dtype=torch.float32)
    for start in range(0, at_T.shape[0], CHUNK):
        total_H += take(embeds_NH, at_T[start : start + CHUNK]).sum(0, dtype=torch.float32)
    return total_H


@dataclass(frozen=True)
class Whole:
    """What is known of all video tokens of a row, some of which may be another rank's.

    Attributes:
        tokens: how many.
        common_H: what all their features have in common: their mean.
        total: adds up what each rank found of its own tokens.
    """

    tokens: int
    common_H: Tensor
    total: Callable[[Tensor], Tensor] = lambda own: own


def frame_fit(question_QH: Tensor, embeds_NH: Tensor, at_T: Array, frame_T: Array, frames: int, whole: Whole) -> Tensor:
    """How well frames fit each question token: the cosines of their features with it, pooled, (Q, F).

    Args:
        at_T, frame_T: where the frames' tokens stand in ``embeds_NH``, and the frame of each, counted from 0.
        whole: of the video; what all of it has in common is taken off the features.

    A word for all of a frame, such as a place, shows in the mean over its tokens, a word for a thing in it in the best
    of them alone. Between these is the log of the mean of exponentials. Its temperature, for each word, is the standard
    deviation of the word's cosines over the video, so it does not matter how alike words and features are in a model.

    Source: log-sum-exp pooling (Boyd and Vandenberghe, "Convex Optimization", 2004; for images Pinheiro and Collobert,
    "From image-level to pixel-level labeling with convolutional networks", 2015).
    """
    parts = []
    for some_QH in _words(question_QH, whole.tokens):
        cosine_TQ = _cosines(some_QH, embeds_NH, at_T, frame_T, lambda block: whole.common_H)
        heat_Q = _heat(whole.total(_moments(cosine_TQ)) / whole.tokens)
        parts.append(pooled(cosine_TQ, frame_T, frames, heat_Q))
    return torch.cat(parts)


def batch_fit(word_WH: Tensor, row_W: Array, embeds_MH: Tensor, video: VideoTokens, mean_BH: Tensor) -> Tensor:
    """:func:`frame_fit` for all rows of a batch at once, (W, F); -inf for frames of another row than the word's.

    A device gets as many calls as for one row. In return each word is compared with the tokens of all rows.

    Args:
        word_WH, row_W: question tokens of all rows, and the row of each.
        embeds_MH: of the batch, row after row. mean_BH: of each row's video features.
    """
    device, row_T = embeds_MH.device, video.row_F[video.frame_T]
    tokens_W = give(np.bincount(row_T, minlength=len(mean_BH))[row_W], device)
    in_row_T, in_row_W, in_row_F = (give(row, device) for row in (row_T, row_W, video.row_F))
    parts, start = [], 0
    for some_WH in _words(word_WH, len(row_T)):
        some = slice(start, start := start + len(some_WH))
        cosine_TW = _cosines(
            some_WH, embeds_MH, video.at_T, video.frame_T, lambda block: mean_BH.index_select(0, in_row_T[block])
        )
        mine_TW = cosine_TW.masked_fill(in_row_T[:, None] != in_row_W[some], 0)
        heat_W = _heat(_moments(mine_TW) / tokens_W[some])
        fit_WF = pooled(cosine_TW, video.frame_T, len(video.row_F), heat_W)
        parts.append(fit_WF.masked_fill(in_row_W[some, None] != in_row_F, -torch.inf))
    return torch.cat(parts)


def _words(word_QH: Tensor, tokens: int) -> tuple[Tensor, ...]:
    """Words of length 1, by so many that their cosines with all tokens have room."""
    return torch.split(torch.nn.functional.normalize(word_QH.float(), dim=-1), max(1, FITS // tokens))


def _moments(cosine_TQ: Tensor) -> Tensor:
    """Sums of each word's cosines and of their squares, (2, Q)."""
    return torch.stack([cosine_TQ.sum(0), cosine_TQ.square().sum(0)]).double()


def _heat(mean_2Q: Tensor) -> Tensor:
    """Standard deviation of each word's cosines, (Q,)."""
    return (mean_2Q[1] - mean_2Q[0].square()).clamp(min=0).sqrt().float().clamp(min=1e-12)


def _cosines(
    word_QH: Tensor, embeds_NH: Tensor, at_T: Array, frame_T: Array, common: Callable[[slice], Tensor]
) -> Tensor:
    """Cosine of each token's feature, without what is ``common`` to it and others, with each word, (T, Q) fp32."""
    out_TQ = torch.empty(len(at_T), len(word_QH), device=embeds_NH.device, dtype=torch.float32)
    room = Room(embeds_NH)
    for block in blocks(frame_T, CHUNK if here(embeds_NH) else DEVICE_VALUES // embeds_NH.shape[1]):
        x_TH = room.copy(take(embeds_NH, at_T[block])).sub_(common(block))
        norm_T = torch.linalg.vector_norm(x_TH, dim=-1)
        torch.mm(x_TH, word_QH.T, out=out_TQ[block]).div_(norm_T.clamp_(min=1e-12)[:, None])
    return out_TQ


def pooled(cosine_TQ: Tensor, frame_T: Array, frames: int, heat_Q: Tensor) -> Tensor:
    """Log of the mean of exponentials over each frame's tokens at a temperature for each word, (Q, F)."""
    size_F = give(np.bincount(frame_T, minlength=frames), cosine_TQ.device)
    best_FQ = torch.segment_reduce(cosine_TQ, "max", lengths=size_F, axis=0, unsafe=True)
    near_TQ = cosine_TQ.sub_(best_FQ[give(frame_T, cosine_TQ.device)]).div_(heat_Q).exp_()
    mean_FQ = torch.segment_reduce(near_TQ, "mean", lengths=size_F, axis=0, unsafe=True)
    return mean_FQ.log_().mul_(heat_Q).add_(best_FQ).T


def row_fits(word_WH: Tensor, row_W: Array, embeds_MH: Tensor, video: VideoTokens, mean_BH: Tensor | None) -> Tensor:
    """The fit of all frames of a batch to each word, as :func:`batch_fit` gives it; on the host row by row.

    Without ``mean_BH`` the features are read once more for it.
    """
    rows = [(row, video.row_F == row, row_W == row) for row in np.unique(row_W).tolist()]
    row_T = video.row_F[video.frame_T]
    if mean_BH is None:
        mean_BH = torch.zeros(int(row_W[-1]) + 1, embeds_MH.shape[1], device=embeds_MH.device, dtype=torch.float32)
        for row, *_ in rows:
            own = video.at_T[row_T == row]
            mean_BH[row] = feature_sum(embeds_MH, own) / len(own)
    if not here(embeds_MH):
        return batch_fit(word_WH, row_W, embeds_MH, video, mean_BH)
    fit_WF = torch.full((len(row_W), len(video.row_F)), -torch.inf)
    for row, in_F, in_W in rows:
        own, frames, words = row_T == row, places(in_F), places(in_W)
        frame_T, whole = video.frame_T[own] - frames[0], Whole(int(own.sum()), mean_BH[row])
        found = frame_fit(word_WH[words], embeds_MH, video.at_T[own], frame_T, len(frames), whole)
        fit_WF[words[0] : words[-1] + 1, frames[0] : frames[-1] + 1] = found
    return fit_WF
