"""What a question sees of a video that was watched.

Legend: K tokens that are seen, L decoder layers, G key/value heads, D head size, S scenes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.memory.attend import attention_paid_to
from segmo.memory.block import Block, columns
from segmo.memory.choose import dense_scenes, find_starts, keep_tokens, novelty_inside, relevance, scene_of
from segmo.memory.options import QuestionOptions
from segmo.memory.seen import Asked, Seen
from segmo.memory.watcher import Watcher
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.relevance import scene_mean
from segmo.runtime.selection import warn_of_none


@dataclass(frozen=True)
class Survey:
    """What does not depend on the question: the tokens held, and how new each is within its scene.

    Attributes:
        held: blocks, in order.
        known: their columns.
        features: of the video tokens, (V, H), on the model's device.
        starts: first frame of each scene.
        scene: of each token; scenes that hold a video token are counted.
        old: number of these scenes among all.
        novelty: of each token.
        behind: position of the first token behind the video.
        video_tokens: that were watched.
        ranks: that keep the blocks.
    """

    held: list[Block]
    known: dict[str, Tensor]
    features: Tensor
    starts: Tensor
    scene: Tensor
    old: Tensor
    novelty: Tensor
    behind: int
    video_tokens: int
    ranks: Ranks


def survey(watcher: Watcher) -> Survey:
    """Of what has been watched up to now."""
    held = watcher.held()
    known = columns(held)
    starts = find_starts(watcher.similarity)
    scene, old = dense_scenes(scene_of(known["frame"], starts), known["cell"])
    features = torch.cat([block.features.to(watcher.model.device) for block in held])
    novelty = novelty_inside(features, known["novelty"], known["frame"], known["cell"], scene)
    return Survey(
        held, known, features, starts, scene, old, novelty, watcher.behind, watcher.video_tokens, watcher.keeper.ranks
    )


def look(model: Any, found: Survey, asked: Asked, options: QuestionOptions) -> Seen:
    """The tokens that CAS chooses for a question of those that are held.

    Args:
        model: that watched.
        found: what it holds.
        asked: the question.
        options: ``keep`` of the video's tokens are chosen, as far as so many are held.
    """
    frame, cell, scene = found.known["frame"], found.known["cell"], found.scene
    video = cell >= 0
    total = min(math.floor(options.keep * found.video_tokens), int(video.sum()))
    if not total:
        warn_of_none(found.video_tokens)
    index_LK = torch.stack(
        [
            keep_tokens(found.novelty, frame, cell, scene, fit_S, total, options.balance)
            for fit_S in _relevance(model, found, asked, options)
        ]
    )
    chosen = torch.bincount(scene[index_LK][video[index_LK]], minlength=len(found.old)) / len(index_LK)
    scenes = {
        int(found.starts[number]): math.ceil(count)
        for number, count in zip(found.old.tolist(), chosen.tolist(), strict=True)
    }
    return Seen(found.held, found.known, index_LK, scenes)


def _relevance(model: Any, found: Survey, asked: Asked, options: QuestionOptions) -> Tensor:
    """How well each scene fits a question: for all layers together (1, S), or for each layer, (L, S)."""
    video = found.known["cell"] >= 0
    scene_V = found.scene[video]
    if options.scorer == "attention":
        whole = Seen(found.held, found.known, torch.arange(len(found.scene))[None], {})
        paid_LT = attention_paid_to(model, whole, asked, found.behind, options.layer, found.ranks)
        return torch.stack([scene_mean(paid_T[video], scene_V) for paid_T in paid_LT.cpu()])
    embed = model.get_input_embeddings()
    words_QH = embed(torch.as_tensor(list(asked.words), dtype=torch.long, device=embed.weight.device)).detach()
    return relevance(options.scorer, words_QH, found.features, found.known["frame"][video], scene_V)[None]
