"""What a selection leaves of a training video: the runtime's own rule at a random budget, so that the decoder meets
videos as thin as ``CAS`` makes them.

Legend: R rows (one question each, or one row for a whole video), V video tokens, K kept tokens, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.options import Options
from segmo.runtime.features import scan_video
from segmo.runtime.layout import QUERY
from segmo.runtime.novelty import scene_novelty
from segmo.runtime.relevance import embedding_relevance
from segmo.runtime.scenes import MAX_SCENES, find_scenes
from segmo.runtime.selection import select_tokens


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def thin_out(features_VH: Tensor, cells: int, kept: int, question_RTH: Tensor) -> Tensor:
    """Indices of the ``kept`` video tokens that CAS chooses for each question, (R, K) ascending.

    Args:
        features_VH: of one video.
        cells: tokens of a frame.
        question_RTH: embeddings of the words of each question.
    """
    video, (rows, words, _) = len(features_VH), question_RTH.shape
    embeds = torch.cat([features_VH.expand(rows, -1, -1), question_RTH], dim=1).float()
    place, text = torch.arange(video), torch.full((words,), QUERY)
    frame, cell = torch.cat([place // cells, text])[None], torch.cat([place % cells, torch.full_like(text, -1)])[None]
    first, similarity, _ = scan_video(embeds[:1], frame, cell)
    scene = find_scenes(similarity, frame, cell, MAX_SCENES)
    novel = scene_novelty(embeds[:1], first, frame, cell, scene)
    novel, frame, cell, scene = (part.expand(rows, -1) for part in (novel, frame, cell, scene))
    asked = torch.cat([place < 0, text == QUERY]).expand(rows, -1)
    relevant = embedding_relevance(embeds, scene, cell, asked, MAX_SCENES)
    index = select_tokens(novel, frame, cell, scene, relevant, kept + words, Options().balance)
    return index[:, :kept]
