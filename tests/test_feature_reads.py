"""How much of a video's features is copied, widened or held at a time by the steps that choose its tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segmo.runtime.features import scan_video
from segmo.runtime.novelty import scene_novelty
from segmo.runtime.relevance import embedding_relevance

FRAMES, CELLS, HIDDEN, SCENES = 16, 256, 128, 2
TOKENS = FRAMES * CELLS


class Reads(TorchDispatchMode):
    """Counts rows of features that operators read to make others of them, and the values of the largest new tensor."""

    def __init__(self, embeds_BNH: Tensor) -> None:
        super().__init__()
        self.features, self.rows, self.most = embeds_BNH.untyped_storage().data_ptr(), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sources = [x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() != self.features:
                self.most = max(self.most, made.numel())
                if self.features in sources:
                    of = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
                    self.rows += (made if made.shape[-1:] == (HIDDEN,) and made.dim() > 1 else of).numel() // HIDDEN
        return out


def reads(step: Callable[..., Any], embeds_BNH: Tensor, *args: Any) -> tuple[Any, float]:
    """What a step returns, and how often it read the video; it may hold a quarter of it at a time."""
    with Reads(embeds_BNH) as seen:
        found = step(embeds_BNH, *args)
    assert seen.most <= TOKENS * HIDDEN // 4
    return found, seen.rows / TOKENS


def test_features_are_read_in_parts_and_not_gathered() -> None:
    """Where a video's tokens are neighbours, nothing is gathered but scenes' first frames."""
    frame = torch.arange(FRAMES).repeat_interleave(CELLS)
    frame_BN = torch.nn.functional.pad(frame, (1, 2), value=-2)[None]
    cell_BN = torch.nn.functional.pad(torch.arange(CELLS).repeat(FRAMES), (1, 2), value=-1)[None]
    scene_BN = torch.where(frame_BN < 0, frame_BN, frame_BN * SCENES // FRAMES)
    question_BN = torch.arange(TOKENS + 3)[None] > TOKENS
    embeds_BNH = torch.randn(1, TOKENS + 3, HIDDEN).bfloat16()
    (novelty_BN, _, mean_BH), times = reads(scan_video, embeds_BNH, frame_BN, cell_BN)
    assert times <= 1.07  # the frame before is still at hand, but for the first one
    _, times = reads(scene_novelty, embeds_BNH, novelty_BN, frame_BN, cell_BN, scene_BN)
    assert times <= 1.75  # a frame, and what it is compared with once for its scene
    asked = (scene_BN, cell_BN, question_BN, 8)
    _, times = reads(partial(embedding_relevance, mean_BH=mean_BH), embeds_BNH, *asked)
    assert times <= 1.01
    _, times = reads(embedding_relevance, embeds_BNH, *asked)
    assert 1.5 <= times <= 2.01  # for the mean as well


def test_small_frames_are_read_once_and_those_at_the_edges_of_blocks_again() -> None:
    frame_BN = torch.arange(TOKENS // 64).repeat_interleave(64)[None]
    cell_BN = torch.arange(64).repeat(TOKENS // 64)[None]
    _, times = reads(scan_video, torch.randn(1, TOKENS, HIDDEN).bfloat16(), frame_BN, cell_BN)
    assert times <= 1.25
