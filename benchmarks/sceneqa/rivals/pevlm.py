"""PEVLM: blocks of frames that see a shared sink and themselves; all tokens stay.

Source: Kang et al., "PEVLM: Parallel Encoding for Vision-Language Models" (2025), from its description: the text before
the video and the first frames are a sink that all blocks see, a block is a run of frames, equal for all, the question
sees everything, and positions stay those of the whole prompt. Taken here: the first ``SINK_FRAMES`` frames, and blocks
that differ by one frame at most.

Legend: N prompt tokens, F frames, C tokens of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

SINK_FRAMES = 4


def block_mask(before: int, frames: int, cells: int, after: int, blocks: int) -> Tensor:
    """Who sees whom, (N, N) bool; rows are queries.

    Args:
        before, after: text tokens in front of the video and behind it.
        blocks: that the frames behind the sink are divided into.
    """
    rest = frames - SINK_FRAMES
    frame = torch.arange(frames * cells) // cells
    block = torch.where(frame < SINK_FRAMES, -1, (frame - SINK_FRAMES) * blocks // rest)
    block_N = torch.cat([torch.full((before,), -1), block, torch.full((after,), blocks)])
    seen = (block_N < 0) | (block_N[:, None] == blocks) | (block_N == block_N[:, None])
    return seen.tril()
