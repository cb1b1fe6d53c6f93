"""Relevance of each scene to the question: the scorers of CAS, step 2.

Legend: B batch, N prompt tokens, Q question tokens, V video tokens of a row, S scenes, H hidden size,
A query heads, G key/value heads, D head size.

Every scorer returns (B, S) fp32 with -inf for scenes that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import CHUNK, DEVICE_VALUES, blocks
from segmo.runtime.host import Array, array, give, here, read
from segmo.runtime.layout import heads_of
from segmo.runtime.video_runs import places
from segmo.runtime.video_tokens import Room, VideoTokens, take

FITS = 2**21  # cosines of words with tokens that are held at a time: 8 MB
ROWS = 64  # question tokens scored at a time, so that memory stays linear in the prompt's length


def _empty(scene_BN: Tensor, max_scenes: int) -> Tensor:
    return torch.full((scene_BN.shape[0], max_scenes), -torch.inf, device=scene_BN.device, dtype=torch.float32)


def rows_with_video(cell_BN: Tensor) -> Iterator[tuple[int, Array]]:
    """Each row that holds video, and where its video tokens stand, (V,); a row without has no scene to score."""
    for row, cell_N in enumerate(array(cell_BN)):
        video_V = places(cell_N >= 0)
        if len(video_V):
            yield row, video_V


def scene_sizes(scene_V: Tensor, scenes: int) -> Tensor:
    """Tokens of each scene, (S,), of tokens in order; nothing is waited for on a device."""
    edges = torch.arange(scenes + 1, device=scene_V.device)
    return torch.searchsorted(scene_V.contiguous(), edges).diff()


def scene_sum(score_V: Tensor, size_S: Tensor) -> Tensor:
    """Sum of the scores of each scene, in one order: its tokens are neighbours."""
    return torch.segment_reduce(score_V, "sum", lengths=size_S, unsafe=True)


def scene_mean(score_V: Tensor, scene_V: Tensor, scenes: int | None = None) -> Tensor:
    """Mean score of each scene, (S,); -inf for a scene without a token.

    Args:
        score_V, scene_V: of tokens or frames, in order.
        scenes: S; up to the last one's scene if not given.
    """
    size_S = scene_sizes(scene_V, int(array(scene_V[-1:])[0]) + 1 if scenes is None else scenes)
    return (scene_sum(score_V, size_S) / size_S.clamp(min=1)).masked_fill(size_S == 0, -torch.inf)


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


# (Q, H) question, (N, H) embeddings of one row, (V,) video tokens, (V,) their frames, F -> (Q, F)
Fit = Callable[[Tensor, Tensor, Array, Array, int], Tensor]


def embedding_relevance(
    embeds_BNH: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    max_scenes: int,
    fit: Fit | None = None,
    frame_BN: Tensor | None = None,
    mean_BH: Tensor | None = None,
) -> Tensor:
    """How well a scene's best frame fits the question's words, before the first decoder layer.

    ``question_BN`` tells the question's tokens, wherever they stand (:mod:`segmo.runtime.question`). ``frame_BN`` is
    the frame of each token; without it a frame begins at its cell 0. ``mean_BH`` is the mean of each row's features,
    from :func:`segmo.runtime.features.scan_video`; without it they are read once more.

    A frame fits a word by the cosines between the word's embedding and the frame's features, without what all of the
    video's features have in common (:func:`frame_fit`); a scene fits as its best frame does; and a word counts by how
    much it tells scenes apart (its standard deviation over the scenes), so that "which" and "the" have no say. A prompt
    without a question scores 0 everywhere.

    Source: late interaction as in ColBERT (Khattab and Zaharia, 2020), with weights in the spirit of inverse document
    frequency.
    """
    video = VideoTokens.of(_counted(cell_BN) if frame_BN is None else frame_BN, cell_BN)
    embeds_MH = embeds_BNH.flatten(0, 1)
    device, (batch, length) = embeds_BNH.device, scene_BN.shape
    row_T = video.row_F[video.frame_T]
    scene_T = scene_BN.flatten()[give(video.at_T, device)] + give(row_T * max_scenes, device)  # of other rows are others
    there_BS = (scene_sizes(scene_T, batch * max_scenes) > 0).view(batch, max_scenes)
    asked_BN, cell = read(question_BN, cell_BN)
    at_W = places((asked_BN & (cell >= 0).any(axis=1, keepdims=True)).reshape(-1))
    if not len(at_W):
        return torch.where(there_BS, 0.0, -torch.inf)
    row_W = at_W // length
    word_WH = embeds_MH.index_select(0, give(at_W, device))
    if fit is None:
        fit_WF = row_fits(word_WH, row_W, embeds_MH, video, mean_BH)
    else:
        fit_WF = fit(word_WH, embeds_MH, video.at_T, video.frame_T, len(video.row_F))
    scene_F = scene_T[give(places(video.head_T), device)]
    best_WM = fit_WF.new_full((len(at_W), batch * max_scenes), -torch.inf)
    best_WM.scatter_reduce_(1, scene_F.expand_as(fit_WF), fit_WF, "amax")
    of_row_W = give(row_W, device)
    best_WS = best_WM.view(-1, batch, max_scenes)[torch.arange(len(at_W), device=device), of_row_W]
    there_WS = there_BS[of_row_W]
    best_WS = best_WS.masked_fill(~there_WS, 0)
    weight_W = _spread(best_WS, there_WS) + 1e-12
    words_B = give(np.bincount(row_W, minlength=batch), device)
    whole_B = torch.segment_reduce(weight_W, "sum", lengths=words_B, unsafe=True)
    part_WS = best_WS * (weight_W / whole_B[of_row_W])[:, None]
    found_BS = torch.segment_reduce(part_WS, "sum", lengths=words_B, axis=0, unsafe=True)
    return found_BS.masked_fill(~there_BS, -torch.inf)


def _counted(cell_BN: Tensor) -> Tensor:
    """Frames by their cell 0, (B, N); -1 for text."""
    return torch.where(cell_BN < 0, -1, (cell_BN == 0).cumsum(1) - 1)


def _spread(best_QS: Tensor, there_QS: Tensor) -> Tensor:
    """Standard deviation over the scenes that are there, (Q,)."""
    best_QS, count_Q = best_QS.double(), there_QS.sum(dim=1)
    away_QS = (best_QS - best_QS.sum(dim=1, keepdim=True) / count_Q[:, None]) * there_QS
    return (away_QS.square().sum(dim=1) / count_Q).sqrt().float()


def asking_rows(question_N: Array, cell_N: Array, valid_N: Array | None) -> Array:
    """Rows of one prompt whose attention asks: the question's, and the one that gives the next token, (Q,) ascending.

    The last row has read the question, wherever that stands, and sees all of the video. Without a question, no rows.
    """
    places_Q = places(question_N)
    last = question_N.shape[0] - 1 if valid_N is None else int(places(valid_N)[-1])
    if not len(places_Q) or places_Q[-1] >= last or cell_N[last] >= 0:
        return places_Q
    return np.append(places_Q, last)


def attention_paid(q_ARD: Tensor, k_GND: Tensor, hidden_RN: Tensor, scale: float) -> Tensor:
    """Attention that rows pay to each key, summed over rows and heads, (N,) fp32.

    Args:
        q_ARD, k_GND: queries and keys of one row of a batch.
        hidden_RN: keys that a row does not see.
        scale: of the logits.
    """
    paid_N = torch.zeros(k_GND.shape[1], device=q_ARD.device, dtype=torch.float32)
    for q_HRD, k_ND in zip(torch.unflatten(q_ARD, 0, (k_GND.shape[0], -1)), k_GND, strict=True):
        logits = (q_HRD @ k_ND.T).float() * scale
        paid_N += logits.masked_fill_(hidden_RN, -torch.inf).softmax(dim=-1).sum(dim=(0, 1))
    return paid_N


def attention_relevance(
    q_BAND: Tensor,
    k_BGND: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    valid_BN: Tensor | None,
    scale: float,
    max_scenes: int,
) -> Tensor:
    """Attention that the question pays to a scene, mean over heads, its rows and the scene's tokens.

    Its rows are those of :func:`asking_rows`. A question token in front of a video would see nothing of it. Here it
    sees all that it would see right behind the last one. The attention matrix is built for these rows alone, a
    key/value head and a few rows at a time.
    """
    out_BS = _empty(scene_BN, max_scenes)
    heads, device, number_N = q_BAND.shape[1], q_BAND.device, torch.arange(k_BGND.shape[2], device=q_BAND.device)
    asked, cell, valid = read(question_BN, cell_BN, valid_BN)
    for row, video_V in rows_with_video(cell_BN):
        asking_Q = asking_rows(asked[row], cell[row], None if valid is None else valid[row])
        score_N = torch.zeros(k_BGND.shape[2], device=device, dtype=torch.float32)
        for start in range(0, len(asking_Q), ROWS):
            rows = asking_Q[start : start + ROWS]
            hidden = number_N > give(rows.clip(min=video_V[-1]), device)[:, None]
            if valid_BN is not None:
                hidden = hidden | ~valid_BN[row]
            score_N += attention_paid(q_BAND[row][:, give(rows, device)], k_BGND[row], hidden, scale)
        at_V = give(video_V, device)
        out_BS[row] = scene_mean(score_N[at_V], scene_BN[row, at_V], max_scenes) / max(heads * len(asking_Q), 1)
    return out_BS


def external_relevance(scores: Tensor, scene_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int) -> Tensor:
    """Scores handed in by the user: one per frame (averaged over the scene) or one per scene.

    Args:
        scores: (F,), (S,), (B, F) or (B, S) floating point; (0,) when the user handed in none.

    Raises:
        PromptError: no scores, scores that are not finite, or a number of scores that fits neither frames nor
            scenes.
    """
    if scores.numel() == 0:
        raise PromptError(
            'scorer="external" needs scores: wrap the call in `with segmo.external_scores(scores): ...`, '
            "one score per frame or per scene"
        )
    if not np.isfinite(array(scores)).all():
        raise PromptError("the external scores hold NaN or infinity")
    out_BS = _empty(scene_BN, max_scenes)
    rows = scores.reshape(-1, scores.shape[-1] if scores.dim() else 1).float().cpu()
    if rows.shape[0] not in (1, scene_BN.shape[0]):
        raise PromptError(f"external scores have {rows.shape[0]} rows, the batch has {scene_BN.shape[0]}")
    rows = rows.expand(scene_BN.shape[0], -1)
    scene, frame, cell = read(scene_BN, frame_BN, cell_BN)
    for row in range(scene.shape[0]):
        heads_F = heads_of(frame[row], cell[row])
        if not len(heads_F):
            continue
        scene_F = scene[row, heads_F]
        frames, scenes = len(heads_F), int(scene_F.max()) + 1
        if rows.shape[1] == frames:
            score_S = scene_mean(rows[row], torch.from_numpy(scene_F))
        elif rows.shape[1] == scenes:
            score_S = rows[row]
        else:
            raise PromptError(
                f"{rows.shape[1]} external scores fit neither the {frames} frames nor the {scenes} scenes of "
                "the video (a frame is one temporal patch: two sampled frames for Qwen-VL)"
            )
        out_BS[row, :scenes] = give(score_S.numpy(), out_BS.device)
    return out_BS
