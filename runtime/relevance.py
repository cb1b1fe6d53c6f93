"""Relevance of each scene to the question: the scorers of CAS, step 2.

Legend: B batch, N prompt tokens, M those of the batch, Q question tokens, W those of the batch, V video tokens of a
row, T those of the batch, F frames, S scenes, H hidden size. The scorer ``attention`` is in
:mod:`segmo.runtime.asking`.

Every scorer returns (B, S) fp32 with -inf for scenes that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.frame_fit import row_fits
from segmo.runtime.host import Array, array, give, read
from segmo.runtime.layout import heads_of
from segmo.runtime.video_runs import places
from segmo.runtime.video_tokens import VideoTokens


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
    scene_T = scene_BN.flatten()[give(video.at_T, device)] + give(row_T * max_scenes, device)  # rows share no scene
    there_BS = (scene_sizes(scene_T, batch * max_scenes) > 0).view(batch, max_scenes)
    asked_BN, cell = read(question_BN, cell_BN)
    at_W = places((asked_BN & (cell >= 0).any(axis=1, keepdims=True)).reshape(-1))
    if not len(at_W):
        return torch.zeros_like(there_BS, dtype=torch.float32).masked_fill_(~there_BS, -torch.inf)
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
    shape = (scene_BN.shape[0], max_scenes)
    out_BS = torch.full(shape, -torch.inf, device=scene_BN.device, dtype=torch.float32)
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
