"""Which tokens of a memory a question sees, and which an old part of a memory keeps: CAS on what is held.

Scores, budgets and the choice itself are those of :mod:`segmo.runtime`.

Legend: T tokens held, V video tokens among them, Q tokens of the question, S scenes, F frames, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.external import current_scores
from segmo.runtime.host import read
from segmo.runtime.layout import QUERY
from segmo.runtime.novelty import novel_tokens
from segmo.runtime.relevance import embedding_relevance, external_relevance
from segmo.runtime.scenes import MAX_SCENES, scene_starts
from segmo.runtime.selection import FRESH, select_tokens


def find_starts(similarity: Sequence[float]) -> Tensor:
    """First frame of each scene of the whole video as far as it is known, ascending, (S,) int64."""
    distance_F = 1 - torch.tensor(similarity, dtype=torch.float32)
    first_F = torch.zeros(len(similarity), dtype=torch.bool)
    first_F[0] = True
    return torch.tensor(scene_starts(distance_F, first_F, MAX_SCENES))


def scene_of(frame_T: Tensor, starts: Tensor) -> Tensor:
    """Scene of each frame number, (T,) int64; text before the video (a negative frame) keeps its number."""
    scene_T = torch.bucketize(frame_T, starts[1:], right=True)
    return torch.where(frame_T < 0, frame_T, scene_T)


def keep_tokens(
    novelty_T: Tensor, frame_T: Tensor, cell_T: Tensor, scene_T: Tensor, relevance_S: Tensor, total: int, balance: float
) -> Tensor:
    """Places of all text and of ``total`` video tokens, ascending.

    Args:
        novelty_T: from :func:`novelty_inside`.
        scene_T: every scene from 0 to the last has a video token.
        relevance_S: of these scenes.
    """
    # Something stands behind the video, so that no video token is the prompt's last one.
    behind = frame_T.new_full((1,), QUERY)
    kept = int((cell_T < 0).sum()) + total + 1
    index_BK = select_tokens(
        torch.cat([novelty_T, novelty_T.new_zeros(1)])[None],
        torch.cat([frame_T, behind])[None],
        torch.cat([cell_T, behind.new_full((1,), -1)])[None],
        torch.cat([scene_T, behind])[None],
        relevance_S[None],
        kept,
        balance,
    )
    return index_BK[0, :-1]


def novelty_inside(features_VH: Tensor, novelty_T: Tensor, frame_T: Tensor, cell_T: Tensor, scene_T: Tensor) -> Tensor:
    """How new each video token is within its scene, as far as that is still there, (T,) fp32; 0 for text."""
    video_T, device = cell_T >= 0, features_VH.device
    at_V, first_F = np.arange(features_VH.shape[0]), np.arange(int(frame_T.max()) + 1) == 0  # there is one video
    novelty_V, scene_V = (x[video_T].to(device) for x in (novelty_T, scene_T))
    frame_V, cell_V = read(frame_T[video_T], cell_T[video_T])
    found_T = torch.zeros_like(novelty_T)
    found_T[video_T] = novel_tokens(features_VH, at_V, novelty_V, frame_V, cell_V, scene_V, first_F).cpu()
    return found_T


def with_something_new(novelty_T: Tensor, scene_T: Tensor, scenes: int) -> Tensor:
    """Novelties under which every scene is sure of a token: where nothing is new, its first newest token counts so."""
    order = torch.argsort(novelty_T, descending=True, stable=True)
    order = order[scene_T[order] >= 0]
    place = torch.full((scenes,), len(order)).scatter_reduce(0, scene_T[order], torch.arange(len(order)), "amin")
    found = novelty_T.clone()
    found[order[place]] = found[order[place]].clamp(min=FRESH)
    return found


def dense_scenes(scene_T: Tensor, cell_T: Tensor) -> tuple[Tensor, Tensor]:
    """Scenes that hold a video token, numbered without gaps, (T,); and the old number of each, (S,)."""
    known, number = torch.unique(scene_T[cell_T >= 0], return_inverse=True)
    dense_T = scene_T.clamp(max=-1)
    dense_T[cell_T >= 0] = number
    return dense_T, known


def relevance(scorer: str, words_QH: Tensor, features_VH: Tensor, frame_V: Tensor, scene_V: Tensor) -> Tensor:
    """How well each scene fits a question, (S,) fp32.

    Args:
        scorer: "embedding" or "external", see :mod:`segmo.runtime.relevance`.
        words_QH: embeddings of the question's tokens.
        features_VH: features of the video tokens held.
        frame_V, scene_V: of these tokens; scenes are numbered without gaps.
    """
    scenes = int(scene_V[-1]) + 1
    # A frame is told by its cell 0, which may have been dropped: what is left of a frame begins with its first token.
    first_V = torch.ones_like(frame_V)
    first_V[1:] = (frame_V[1:] != frame_V[:-1]).long()
    mark_V = torch.where(first_V.bool(), 0, 1)
    if scorer == "external":
        found = external_relevance(current_scores(), scene_V[None], frame_V[None], mark_V[None], scenes)
        return found[0]
    question = scene_V.new_full((words_QH.shape[0],), QUERY)
    device = features_VH.device
    found = embedding_relevance(
        torch.cat([features_VH, words_QH.to(features_VH)])[None],
        torch.cat([scene_V, question])[None].to(device),
        torch.cat([mark_V, torch.full_like(question, -1)])[None].to(device),
        torch.cat([torch.zeros_like(scene_V, dtype=torch.bool), question == QUERY])[None].to(device),
        scenes,
    )
    return found[0].cpu()
