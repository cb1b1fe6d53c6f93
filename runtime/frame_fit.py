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

FITS, DEVICE_FITS = 2**21, 2**24  # cosines of words with tokens that the host, or a device, holds at a time: 8 or 64 MB


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
    for some_QH in _words(question_QH, whole.tokens, _limit(embeds_NH)):
        cosine_TQ = _cosines(some_QH, embeds_NH, at_T, frame_T, lambda block: whole.common_H)
        heat_Q = _heat(whole.total(_moments(cosine_TQ)) / whole.tokens)
        parts.append(pooled(cosine_TQ, frame_T, frames, heat_Q))
    return torch.cat(parts)


def batch_fit(
    word_WH: Tensor, row_W: Array, embeds_MH: Tensor, at_T: Array, frame_T: Array, row_F: Array, mean_BH: Tensor
) -> Tensor:
    """:func:`frame_fit` for several rows at once, (W, F); -inf for frames of another row than the word's.

    A device gets as many calls as for one row. In return each word is compared with the tokens of all of them.

    Args:
        word_WH, row_W: question tokens of these rows, and the row of each.
        embeds_MH: of the batch, row after row. mean_BH: of each row's video features.
        at_T, frame_T, row_F: where the rows' video tokens stand, their frames counted from 0, and each frame's row.
    """
    device, row_T = embeds_MH.device, row_F[frame_T]
    tokens_W = give(np.bincount(row_T, minlength=len(mean_BH))[row_W], device)
    in_row_T, in_row_W, in_row_F = (give(row, device) for row in (row_T, row_W, row_F))
    parts, start = [], 0
    for some_WH in _words(word_WH, len(row_T), _limit(embeds_MH)):
        some = slice(start, start := start + len(some_WH))
        cosine_TW = _cosines(some_WH, embeds_MH, at_T, frame_T, lambda block: mean_BH.index_select(0, in_row_T[block]))
        mine_TW = cosine_TW.masked_fill(in_row_T[:, None] != in_row_W[some], 0)
        heat_W = _heat(_moments(mine_TW) / tokens_W[some])
        fit_WF = pooled(cosine_TW, frame_T, len(row_F), heat_W)
        parts.append(fit_WF.masked_fill(in_row_W[some, None] != in_row_F, -torch.inf))
    return torch.cat(parts)


def _limit(embeds_NH: Tensor) -> int:
    return FITS if here(embeds_NH) else DEVICE_FITS


def _words(word_QH: Tensor, tokens: int, limit: int) -> tuple[Tensor, ...]:
    """Words of length 1, by so many that their cosines with all tokens have room."""
    return torch.split(torch.nn.functional.normalize(word_QH.float(), dim=-1), max(1, limit // tokens))


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
    """The fit of all frames of a batch to each word, as :func:`batch_fit` gives it.

    On the host row by row; on a device as many rows at once as their cosines have room. Without ``mean_BH`` the
    features are read once more for it.
    """
    row_T, device = video.row_F[video.frame_T], embeds_MH.device
    asked, words = np.unique(row_W, return_counts=True)
    if mean_BH is None:
        mean_BH = torch.zeros(int(asked[-1]) + 1, embeds_MH.shape[1], device=device, dtype=torch.float32)
        for row in asked.tolist():
            own = video.at_T[row_T == row]
            mean_BH[row] = feature_sum(embeds_MH, own) / len(own)
    tokens = np.bincount(row_T)[asked]
    shape = (len(row_W), len(video.row_F))
    fit_WF = torch.full(shape, -torch.inf, device=device, dtype=torch.float32)
    for rows in [[row] for row in asked.tolist()] if here(embeds_MH) else _groups(asked, tokens, words):
        own, in_F, in_W = np.isin(row_T, rows), places(np.isin(video.row_F, rows)), places(np.isin(row_W, rows))
        frame_T = np.searchsorted(in_F, video.frame_T[own])
        given = (word_WH[in_W[0] : in_W[-1] + 1], embeds_MH, video.at_T[own], frame_T)
        if len(rows) == 1:
            found = frame_fit(*given, len(in_F), Whole(int(own.sum()), mean_BH[rows[0]]))
        else:
            found = batch_fit(given[0], row_W[in_W], *given[1:], video.row_F[in_F], mean_BH)
        fit_WF[in_W[0] : in_W[-1] + 1, give(in_F, device)] = found
    return fit_WF


def _groups(row_R: Array, tokens_R: Array, words_R: Array) -> list[list[int]]:
    """Neighbouring rows to work on together."""
    groups, tokens, words = list[list[int]](), 0, 0
    for row, more_tokens, more_words in zip(row_R.tolist(), tokens_R.tolist(), words_R.tolist(), strict=True):
        tokens, words = tokens + more_tokens, words + more_words
        if not groups or tokens * words > DEVICE_FITS:
            groups.append([])
            tokens, words = more_tokens, more_words
        groups[-1].append(row)
    return groups
