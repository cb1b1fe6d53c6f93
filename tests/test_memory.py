"""Memory of the runtime grows linearly in the prompt: no tensor of tokens x tokens or question x tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segmo.runtime.asking import attention_relevance
from segmo.runtime.attention import flash
from segmo.runtime.features import scan_video
from segmo.runtime.layout import QUERY, video_layout
from segmo.runtime.novelty import scene_novelty
from segmo.runtime.relevance import embedding_relevance
from segmo.runtime.scenes import find_scenes
from segmo.runtime.schedule import attention_schedule
from segmo.runtime.segments import context_tokens, segment_ids
from segmo.runtime.selection import kept_count, select_tokens

HIDDEN, CELLS, MAX_SCENES = 32, 16, 8


class _Allocations(TorchDispatchMode):
    """Remembers the most elements of storage that one op's result had."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.most = max(self.most, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def prefill(frames: int) -> tuple[int, int]:
    """Runs selection and one layer's attention; prompt tokens, and elements of the largest tensor made."""
    video = frames * CELLS
    length = 3 * video // 2  # the question is as long as half the video
    video_BN = torch.arange(length)[None] < video
    embeds_BNH = torch.randn(1, length, HIDDEN)
    q = torch.randn(1, 2, length, 16)
    with _Allocations() as allocations:
        frame, cell = video_layout(video_BN, None, CELLS, 0)
        novelty, similarity, _ = scan_video(embeds_BNH, frame, cell)
        scene = find_scenes(similarity, frame, cell, MAX_SCENES)
        novelty = scene_novelty(embeds_BNH, novelty, frame, cell, scene)
        asked = (frame == QUERY) & (cell < 0)
        attention_relevance(q, q[:, :1], scene, cell, asked, None, 0.25, MAX_SCENES)
        relevance = embedding_relevance(embeds_BNH, scene, cell, asked, MAX_SCENES)
        kept = kept_count(length, video, 1, 0.5)
        index = select_tokens(novelty, frame, cell, scene, relevance, kept, 0.5)
        frame, scene = frame.gather(1, index), scene.gather(1, index)
        segment = segment_ids(frame, scene, "4")
        schedule = attention_schedule(segment, context_tokens(frame, scene, segment, relevance, 2, 1), None)
        q = q[:, :, index[0]]
        flash.segment_attention(q, q[:, :1], q[:, :1], schedule, 0.25)
    return length, allocations.most


def test_the_largest_tensor_is_linear_in_the_prompt() -> None:
    length, most = prefill(200)
    longer, more = prefill(400)
    assert longer == 2 * length
    assert most < length * length / 8  # so that a square could not hide behind the constant
    assert more <= 2.1 * most
