"""Which tokens of one video stay, by SegMo's own runtime: scenes, relevance to the question, novelty, budgets.

Legend: V video tokens, Q question tokens, T text tokens, N all of them, H hidden size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import scan_video
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.novelty import scene_novelty
from segmo.runtime.relevance import embedding_relevance
from segmo.runtime.scenes import MAX_SCENES, find_scenes
from segmo.runtime.selection import kept_count, select_tokens


@dataclass(frozen=True)
class Selection:
    """The kept tokens of one video.

    Attributes:
        index: ascending, (K,) int64.
        scenes: how many scenes the video has; 0 where the features were not finite.
        seconds: that the selection took.
    """

    index: Tensor
    scenes: int
    seconds: float


def kept_tokens(video: int, keep: float) -> int:
    """K of V video tokens, at least one: a placeholder must stand for the video."""
    return max(kept_count(video, video, 1, keep), 1)


@torch.no_grad()
def choose(
    features_VH: Tensor, cells: int, question_QH: Tensor, kept: int, balance: float, ends: bool = False
) -> Selection:
    """The tokens of one video that stay.

    Args:
        features_VH: of the vision encoder, frame by frame.
        cells: tokens of a frame.
        question_QH: embeddings of the question's tokens; none for a selection that is blind to it.
        kept: how many stay.
        balance: weight of relevance against dynamics.
        ends: the prompt ends in this video, whose last token then stays.
    """
    start = time.perf_counter()
    try:
        index, scenes = _choose(features_VH, cells, question_QH, kept, balance, ends)
    except PromptError:  # features that are not finite: the answer is lost, the server and other requests are not
        last, device = features_VH.shape[0] - 1, features_VH.device
        index, scenes = torch.linspace(0, last, kept, device=device, dtype=torch.float32).round().long(), 0
    return Selection(index, scenes, time.perf_counter() - start)


def _choose(
    features_VH: Tensor, cells: int, question_QH: Tensor, kept: int, balance: float, ends: bool
) -> tuple[Tensor, int]:
    device, video = features_VH.device, features_VH.shape[0]
    blank_TH = features_VH.new_zeros(0 if ends else 1, features_VH.shape[1])  # what stands behind every other video
    text_TH = torch.cat([question_QH.to(features_VH), blank_TH])
    parts = [text_TH, features_VH] if ends else [features_VH, text_TH]
    embeds_BNH = torch.cat(parts)[None]
    frame_N = torch.full((embeds_BNH.shape[1],), SINK if ends else QUERY, device=device)
    cell_N, asked_N = torch.full_like(frame_N, -1), torch.zeros_like(frame_N, dtype=torch.bool)
    first, text = (text_TH.shape[0], 0) if ends else (0, video)
    token_V = torch.arange(video, device=device)
    frame_N[first : first + video], cell_N[first : first + video] = token_V // cells, token_V % cells
    asked_N[text : text + question_QH.shape[0]] = True

    frame_BN, cell_BN = frame_N[None], cell_N[None]
    novelty_BN, similarity_BN, mean_BH = scan_video(embeds_BNH, frame_BN, cell_BN)
    scene_BN = find_scenes(similarity_BN, frame_BN, cell_BN, MAX_SCENES)
    novelty_BN = scene_novelty(embeds_BNH, novelty_BN, frame_BN, cell_BN, scene_BN)
    relevance_BS = embedding_relevance(embeds_BNH, scene_BN, cell_BN, asked_N[None], MAX_SCENES, mean_BH=mean_BH)
    index_BK = select_tokens(novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, kept + text_TH.shape[0], balance)
    index_K = index_BK[0]
    inside_K = (index_K >= first) & (index_K < first + video)
    return index_K[inside_K] - first, int(scene_BN.max()) + 1
