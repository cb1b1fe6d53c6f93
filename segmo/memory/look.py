"""What a question sees of a video that was watched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.memory.block import Block, columns, join
from segmo.memory.choose import dense_scenes, find_starts, keep_tokens, novelty_inside, relevance, scene_of
from segmo.memory.watcher import Watcher
from segmo.options import Options


@dataclass(frozen=True)
class Seen:
    """What a question sees of a video.

    Attributes:
        tokens: sinks, and what was chosen, as one block.
        scenes: how many video tokens of each scene were chosen, by the scene's first frame.
    """

    tokens: Block
    scenes: dict[int, int]


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
        video_tokens: that were watched.
    """

    held: list[Block]
    known: dict[str, Tensor]
    features: Tensor
    starts: Tensor
    scene: Tensor
    old: Tensor
    novelty: Tensor
    video_tokens: int


def survey(watcher: Watcher) -> Survey:
    """Of what has been watched up to now."""
    held = watcher.held()
    known = columns(held)
    starts = find_starts(watcher.similarity)
    scene, old = dense_scenes(scene_of(known["frame"], starts), known["cell"])
    features = torch.cat([block.features.to(watcher.model.device) for block in held])
    novelty = novelty_inside(features, known["novelty"], known["frame"], known["cell"], scene)
    return Survey(held, known, features, starts, scene, old, novelty, watcher.video_tokens)


def look(model: Any, found: Survey, words: Sequence[int], options: Options) -> Seen:
    """The tokens that CAS chooses for a question of those that are held.

    Args:
        words: ids of the question.
        options: ``keep`` of the video's tokens are chosen, as far as so many are held; ``scorer`` and ``balance``.
    """
    frame, cell, scene = found.known["frame"], found.known["cell"], found.scene
    video = cell >= 0
    embed = model.get_input_embeddings()
    words_QH = embed(torch.as_tensor(list(words), dtype=torch.long, device=embed.weight.device)).detach()
    fit_S = relevance(options.scorer, words_QH, found.features, frame[video], scene[video])
    total = min(math.floor(options.keep * found.video_tokens), int(video.sum()))
    index = keep_tokens(found.novelty, frame, cell, scene, fit_S, total, options.balance)
    parts, start = [], 0
    for block in found.held:
        inside = index[(index >= start) & (index < start + len(block))] - start
        parts.append(block.only(inside).to(words_QH.device))
        start += len(block)
    chosen = torch.bincount(scene[index][video[index]], minlength=len(found.old)).tolist()
    scenes = {int(found.starts[number]): count for number, count in zip(found.old.tolist(), chosen, strict=True)}
    return Seen(join(parts), scenes)
