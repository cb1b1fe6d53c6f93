"""Relevance of each scene to the question: the scorers of CAS, step 2.

Legend: B batch, N prompt tokens, Q question tokens, V video tokens of a row, S scenes, H hidden size,
A query heads, G key/value heads, D head size.

Every scorer returns (B, S) fp32 with -inf for scenes that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import CHUNK, DEVICE_VALUES, blocks
from segmo.runtime.host import Array, array, give, here, read
from segmo.runtime.layout import heads_of
from segmo.runtime.video_runs import places
from segmo.runtime.video_tokens import Room, take

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
    word_QH, parts = torch.nn.functional.normalize(question_QH.float(), dim=-1), []
    for some_QH in torch.split(word_QH, max(1, FITS // whole.tokens)):
        cosine_TQ = _cosines(some_QH, embeds_NH, at_T, frame_T, whole.common_H)
        sums_2Q = whole.total(torch.stack([cosine_TQ.sum(0), cosine_TQ.square().sum(0)]).double()) / whole.tokens
        spread_Q = (sums_2Q[1] - sums_2Q[0].square()).clamp(min=0).sqrt().float()
        parts.append(pooled(cosine_TQ, frame_T, frames, spread_Q.clamp(min=1e-12)))
    return torch.cat(parts)


def _cosines(word_QH: Tensor, embeds_NH: Tensor, at_T: Array, frame_T: Array, common_H: Tensor) -> Tensor:
    """Cosine of each token's feature, without what is common, with each word of length 1, (T, Q) fp32."""
    out_TQ = torch.empty(len(at_T), len(word_QH), device=embeds_NH.device, dtype=torch.float32)
    room = Room(embeds_NH)
    for block in blocks(frame_T, CHUNK if here(embeds_NH) else DEVICE_VALUES // embeds_NH.shape[1]):
        x_TH = room.copy(take(embeds_NH, at_T[block])).sub_(common_H)
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


def whole_fit(question_QH: Tensor, embeds_NH: Tensor, video_V: Array, frame_V: Array, frames: int) -> Tensor:
    """:func:`frame_fit` for all frames of a row: what all its features have in common says nothing about a scene."""
    whole = Whole(len(video_V), feature_sum(embeds_NH, video_V) / len(video_V))
    return frame_fit(question_QH, embeds_NH, video_V, frame_V, frames, whole)


# (Q, H) question, (N, H) embeddings, (V,) video tokens, (V,) their frames, F -> (Q, F)
Fit = Callable[[Tensor, Tensor, Array, Array, int], Tensor]


def embedding_relevance(
    embeds_BNH: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    max_scenes: int,
    fit: Fit = whole_fit,
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
    out_BS = _empty(scene_BN, max_scenes)
    asked, cell, frame = read(question_BN, cell_BN, frame_BN)
    for row, video_V in rows_with_video(cell_BN):
        asked_Q, scene_V = places(asked[row]), scene_BN[row, give(video_V, scene_BN.device)]
        first_V = cell[row, video_V] == 0 if frame is None else np.isin(video_V, heads_of(frame[row], cell[row]))
        scene_F = scene_V[give(places(first_V), scene_V.device)]
        scenes = _scenes(scene_V, max_scenes)
        there_S = scene_sizes(scene_V, scenes) > 0
        if not len(asked_Q):
            out_BS[row, :scenes] = torch.where(there_S, 0.0, -torch.inf)
            continue
        question = embeds_BNH[row].index_select(0, give(asked_Q, embeds_BNH.device))
        frame_V = first_V.cumsum() - 1
        fit_row = fit if mean_BH is None else partial(frame_fit, whole=Whole(len(video_V), mean_BH[row]))
        fit_QF = fit_row(question, embeds_BNH[row], video_V, frame_V, int(frame_V[-1]) + 1)
        best_QS = fit_QF.new_full((len(asked_Q), scenes), -torch.inf)
        best_QS.scatter_reduce_(1, scene_F.expand_as(fit_QF), fit_QF, "amax").masked_fill_(~there_S, 0)
        spread_Q = _spread(best_QS, there_S)
        weight_Q = (spread_Q + 1e-12) / (spread_Q + 1e-12).sum()
        out_BS[row, :scenes] = (weight_Q @ best_QS).masked_fill(~there_S, -torch.inf)
    return out_BS


def _scenes(scene_V: Tensor, most: int) -> int:
    """How many scenes to make room for: as many as there are, where that can be known without waiting for a device."""
    return int(scene_V.numpy().max()) + 1 if here(scene_V) else most


def _spread(best_QS: Tensor, there_S: Tensor) -> Tensor:
    """Standard deviation over the scenes that are there, (Q,)."""
    best_QS, count = best_QS.double(), there_S.sum()
    away_QS = (best_QS - best_QS.sum(dim=1, keepdim=True) / count) * there_S
    return (away_QS.square().sum(dim=1) / count).sqrt().float()


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
