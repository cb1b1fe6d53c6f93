"""Attention segments and context tokens (LSP and GCI).

Legend: B batch, K tokens (kept ones, after CAS), S segments.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from segmo.runtime.scenes import head_frames


def partition_frames(scenes: list[int], tokens: list[int], mode: str) -> list[int]:
    """Segment of each frame.

    Args:
        scenes: scene of each frame that still holds tokens, non-decreasing.
        tokens: tokens of each of them.
        mode: ``"scene"``: a segment per scene. ``"N"``: scenes are merged (smallest neighbours first) or
            split (largest first, at a frame) until there are N. ``"equal:N"``: N segments of about equal
            token counts, cut at frames. With fewer than N frames, each frame is a segment.
    """
    frames = len(scenes)
    before = [0, *accumulate(tokens)]  # tokens before each frame
    if mode.startswith("equal:"):
        bounds = _equal_bounds(before, min(int(mode.removeprefix("equal:")), frames))
    else:
        bounds = [i for i in range(frames) if i == 0 or scenes[i] != scenes[i - 1]] + [frames]
        if mode != "scene":
            target = min(int(mode), frames)
            _merge_smallest(bounds, before, target)
            _split_largest(bounds, before, target)
    return [segment for segment, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)]


def _merge_smallest(bounds: list[int], before: list[int], target: int) -> None:
    """Joins neighbours, always the two that are smallest together, until ``target`` segments are left."""
    while len(bounds) - 1 > target:
        del bounds[min(range(1, len(bounds) - 1), key=lambda i: before[bounds[i + 1]] - before[bounds[i - 1]])]


def _split_largest(bounds: list[int], before: list[int], target: int) -> None:
    """Halves a segment, always the largest that has several frames, until there are ``target`` segments."""
    while len(bounds) - 1 < target:
        several = (i for i in range(len(bounds) - 1) if bounds[i + 1] - bounds[i] > 1)
        widest = max(several, key=lambda i: before[bounds[i + 1]] - before[bounds[i]])
        start, end = bounds[widest : widest + 2]
        middle = (before[start] + before[end]) / 2
        bounds.insert(widest + 1, _nearest(before, middle, start + 1, end - 1))


def _equal_bounds(before: list[int], segments: int) -> list[int]:
    """Bounds at the frames nearest to equal shares of the tokens, with at least one frame in each segment."""
    frames = len(before) - 1
    bounds = [0]
    for segment in range(1, segments):
        share = before[-1] * segment / segments
        bounds.append(_nearest(before, share, bounds[-1] + 1, frames - segments + segment))
    return [*bounds, frames]


def _nearest(before: list[int], tokens: float, low: int, high: int) -> int:
    """The frame from ``low`` to ``high`` with nearest to ``tokens`` tokens before it; the earlier of two."""
    at = bisect_left(before, tokens, low, high)
    return at - 1 if at > low and tokens - before[at - 1] <= before[at] - tokens else at


def segment_ids(frame_BK: Tensor, scene_BK: Tensor, mode: str) -> Tensor:
    """Attention segment of every token, (B, K) int64, with ``SINK`` and ``QUERY`` kept from ``frame_BK``.

    Args:
        frame_BK: frame of each token, text between frames included.
        scene_BK: scene of each token, likewise.
        mode: see :func:`partition_frames`.
    """
    segment_BK = frame_BK.clone()
    for row in range(frame_BK.shape[0]):
        inside = frame_BK[row] >= 0
        if not bool(inside.any()):
            continue
        frames, position, tokens = torch.unique_consecutive(
            frame_BK[row, inside], return_inverse=True, return_counts=True
        )
        scene_of = torch.empty_like(frames).scatter_(0, position, scene_BK[row, inside])
        segments = partition_frames(scene_of.tolist(), tokens.tolist(), mode)
        segment_BK[row, inside] = torch.tensor(segments, device=frame_BK.device)[position]
    return segment_BK


def context_tokens(
    frame_BK: Tensor, scene_BK: Tensor, segment_BK: Tensor, relevance_BS: Tensor | None, scenes: int, tails: int
) -> Tensor:
    """Global context: head frames of the most relevant scenes and tail frames of all segments, (B, K) bool.

    A head frame (the paper's) tells every segment what the question is about. A tail frame tells a segment what it
    follows, which it can no longer look up: who is asked for the scene after a named one must know the scene before.
    Selection may leave a single token of a frame, so one tail frame can be too little to tell the scene by.

    Args:
        frame_BK, scene_BK: frame and scene of each kept token.
        segment_BK: from :func:`segment_ids`.
        relevance_BS: relevance of each scene, -inf where there is none; ties by order. None without ``scenes``.
        scenes: of how many scenes the first kept frame is context (the paper's m).
        tails: how many of the last kept frames of each segment but the last are.
    """
    context_BK = torch.zeros_like(frame_BK, dtype=torch.bool)
    for row in range(frame_BK.shape[0]):
        inside = scene_BK[row] >= 0
        if not bool(inside.any()):
            continue
        frame, scene, segment = frame_BK[row, inside], scene_BK[row, inside], segment_BK[row, inside]
        found = _in_last_frames(frame, segment, tails)
        if relevance_BS is not None:
            found |= _in_best_heads(frame, scene, relevance_BS[row], scenes)
        context_BK[row, inside] = found
    return context_BK


def _in_best_heads(frame_T: Tensor, scene_T: Tensor, relevance_S: Tensor, scenes: int) -> Tensor:
    """Whether a token is in the head frame of one of the most relevant scenes, (T,) bool."""
    head_S = head_frames(frame_T, scene_T)
    present = (head_S <= frame_T[-1]).nonzero()[:, 0]  # CAS may have dropped scenes
    best = present[torch.argsort(relevance_S[present], descending=True, stable=True)[:scenes]]
    chosen_S = torch.zeros_like(head_S, dtype=torch.bool)
    chosen_S[best] = True
    return chosen_S[scene_T] & (frame_T == head_S[scene_T])


def _in_last_frames(frame_T: Tensor, segment_T: Tensor, frames: int) -> Tensor:
    """Whether a token is in one of the last frames of a segment that another one follows, (T,) bool."""
    at_T: Tensor = torch.unique_consecutive(frame_T, return_inverse=True)[1]  # dropped frames do not count
    last_S = at_T.new_zeros(int(segment_T[-1]) + 1).scatter_reduce_(0, segment_T, at_T, "amax")
    return (at_T > last_S[segment_T] - frames) & (segment_T != segment_T[-1])
