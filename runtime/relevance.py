"""Relevance of each scene to the question: the scorers of CAS, step 2.

Legend: B batch, N prompt tokens, Q question tokens, V video tokens of a row, S scenes, H hidden size,
A query heads, G key/value heads, D head size.

Every scorer returns (B, S) fp32 with -inf for scenes that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import CHUNK
from segmo.runtime.layout import frame_heads

ROWS = 64  # question tokens scored at a time, so that memory stays linear in the prompt's length


def _empty(scene_BN: Tensor, max_scenes: int) -> Tensor:
    return torch.full((scene_BN.shape[0], max_scenes), -torch.inf, device=scene_BN.device)


def rows_with_video(cell_BN: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each row that holds video, and where its video tokens stand, (V,); a row without has no scene to score."""
    for row in range(cell_BN.shape[0]):
        video_V = (cell_BN[row] >= 0).nonzero()[:, 0]
        if video_V.numel():
            yield row, video_V


def scene_mean(score_V: Tensor, scene_V: Tensor) -> Tensor:
    """Mean score of each scene; every scene from 0 to the largest index has a token."""
    scenes = int(scene_V.max()) + 1
    total = torch.zeros(scenes, device=score_V.device).index_add_(0, scene_V, score_V)
    return total / torch.bincount(scene_V, minlength=scenes)


def feature_sum(embeds_NH: Tensor, at_T: Tensor) -> Tensor:
    """Sum of the features of these tokens, (H,) fp32."""
    total_H = torch.zeros(embeds_NH.shape[1], device=embeds_NH.device)
    for start in range(0, at_T.shape[0], CHUNK):
        total_H += embeds_NH[at_T[start : start + CHUNK]].float().sum(0)
    return total_H


def frame_fit(
    question_QH: Tensor, embeds_NH: Tensor, at_T: Tensor, frame_T: Tensor, frames: int, common_H: Tensor
) -> Tensor:
    """Cosine of each question token with a frame's features, averaged over the frame, (Q, F).

    Args:
        at_T, frame_T: where the frames' tokens stand in ``embeds_NH``, and the frame of each, counted from 0.
        common_H: what all features of the video have in common, and is taken off them.
    """
    unit_QH = torch.nn.functional.normalize(question_QH.float(), dim=-1)
    total_QF = torch.zeros(question_QH.shape[0], frames, device=embeds_NH.device)
    for start in range(0, at_T.shape[0], CHUNK):
        chunk = slice(start, start + CHUNK)
        features = embeds_NH[at_T[chunk]].float() - common_H
        norm = torch.linalg.vecdot(features, features).sqrt_().clamp_(min=1e-12)
        total_QF.index_add_(1, frame_T[chunk], (unit_QH @ features.T).div_(norm))
    return total_QF / torch.bincount(frame_T, minlength=frames)


def whole_fit(question_QH: Tensor, embeds_NH: Tensor, video_V: Tensor, frame_V: Tensor, frames: int) -> Tensor:
    """:func:`frame_fit` for all frames of a row: what all its features have in common says nothing about a scene."""
    common_H = feature_sum(embeds_NH, video_V) / video_V.shape[0]
    return frame_fit(question_QH, embeds_NH, video_V, frame_V, frames, common_H)


# (Q, H) question, (N, H) embeddings, (V,) video tokens, (V,) their frames, F -> (Q, F)
Fit = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def embedding_relevance(
    embeds_BNH: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    max_scenes: int,
    fit: Fit = whole_fit,
    frame_BN: Tensor | None = None,
) -> Tensor:
    """How well a scene's best frame fits the question's words, before the first decoder layer.

    ``question_BN`` tells the question's tokens, wherever they stand (:mod:`segmo.runtime.question`). ``frame_BN`` is
    the frame of each token; without it a frame begins at its cell 0.

    A frame fits a word by the mean cosine between the word's embedding and the frame's features, without what all of
    the video's features have in common; a scene fits as its best frame does; and a word counts by how much it tells
    scenes apart (its standard deviation over the scenes), so that "which" and "the" have no say. A prompt without a
    question scores 0 everywhere.

    Source: late interaction as in ColBERT (Khattab and Zaharia, 2020), with weights in the spirit of inverse document
    frequency.
    """
    out_BS = _empty(scene_BN, max_scenes)
    for row, video_V in rows_with_video(cell_BN):
        scene_V = scene_BN[row, video_V]
        scenes = int(scene_V.max()) + 1
        question = embeds_BNH[row, question_BN[row]]
        if question.shape[0] == 0:
            out_BS[row, :scenes] = 0
            continue
        if frame_BN is None:
            first_V = cell_BN[row, video_V] == 0
        else:
            first_V = torch.isin(video_V, frame_heads(frame_BN[row], cell_BN[row]))
        frame_V = first_V.long().cumsum(0) - 1
        fit_QF = fit(question, embeds_BNH[row], video_V, frame_V, int(frame_V[-1]) + 1)
        best_QS = torch.full((question.shape[0], scenes), -torch.inf, device=question.device)
        best_QS.scatter_reduce_(1, scene_V[first_V].expand_as(fit_QF), fit_QF, "amax")
        spread_Q = best_QS.std(dim=1, correction=0)
        weight_Q = (spread_Q + 1e-12) / (spread_Q + 1e-12).sum()
        out_BS[row, :scenes] = weight_Q @ best_QS
    return out_BS


def asking_rows(question_N: Tensor, cell_N: Tensor, valid_N: Tensor | None) -> Tensor:
    """Rows of one prompt whose attention asks: the question's, and the one that gives the next token, (Q,) ascending.

    The last row has read the question, wherever that stands, and sees all of the video. Without a question, no rows.
    """
    places_Q = question_N.nonzero()[:, 0]
    last = question_N.shape[0] - 1 if valid_N is None else int(valid_N.nonzero()[-1])
    if places_Q.numel() == 0 or int(places_Q[-1]) >= last or int(cell_N[last]) >= 0:
        return places_Q
    return torch.nn.functional.pad(places_Q, (0, 1), value=last)


def attention_paid(q_ARD: Tensor, k_GND: Tensor, hidden_RN: Tensor, scale: float) -> Tensor:
    """Attention that rows pay to each key, summed over rows and heads, (N,) fp32.

    Args:
        q_ARD, k_GND: queries and keys of one row of a batch.
        hidden_RN: keys that a row does not see.
        scale: of the logits.
    """
    paid_N = torch.zeros(k_GND.shape[1], device=q_ARD.device)
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
    heads = q_BAND.shape[1]
    for row, video_V in rows_with_video(cell_BN):
        valid_N = None if valid_BN is None else valid_BN[row]
        question_Q = asking_rows(question_BN[row], cell_BN[row], valid_N)
        score_N = torch.zeros(k_BGND.shape[2], device=q_BAND.device)
        for start in range(0, question_Q.shape[0], ROWS):
            rows = question_Q[start : start + ROWS]
            hidden = torch.arange(k_BGND.shape[2], device=q_BAND.device) > rows[:, None].clamp(min=video_V[-1])
            if valid_N is not None:
                hidden = hidden | ~valid_N
            score_N += attention_paid(q_BAND[row][:, rows], k_BGND[row], hidden, scale)
        means = scene_mean(score_N[video_V], scene_BN[row, video_V]) / max(heads * question_Q.numel(), 1)
        out_BS[row, : means.shape[0]] = means
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
    if not bool(torch.isfinite(scores).all()):
        raise PromptError("the external scores hold NaN or infinity")
    out_BS = _empty(scene_BN, max_scenes)
    rows = scores.reshape(-1, scores.shape[-1] if scores.dim() else 1).to(out_BS.device, torch.float32)
    if rows.shape[0] not in (1, scene_BN.shape[0]):
        raise PromptError(f"external scores have {rows.shape[0]} rows, the batch has {scene_BN.shape[0]}")
    rows = rows.expand(scene_BN.shape[0], -1)
    for row in range(scene_BN.shape[0]):
        heads_F = frame_heads(frame_BN[row], cell_BN[row])
        if heads_F.numel() == 0:
            continue
        scene_F = scene_BN[row, heads_F]
        frames, scenes = heads_F.shape[0], int(scene_F.max()) + 1
        if rows.shape[1] == frames:
            out_BS[row, :scenes] = scene_mean(rows[row], scene_F)
        elif rows.shape[1] == scenes:
            out_BS[row, :scenes] = rows[row]
        else:
            raise PromptError(
                f"{rows.shape[1]} external scores fit neither the {frames} frames nor the {scenes} scenes of "
                "the video (a frame is one temporal patch: two sampled frames for Qwen-VL)"
            )
    return out_BS
