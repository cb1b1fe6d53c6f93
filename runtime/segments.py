"""Attention segments and context tokens (LSP and GCI).

Legend: B batch, K tokens (kept ones, after CAS), S segments.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, pairwise

import numpy as np
from torch import Tensor

from segmo.runtime.features import check_finite
from segmo.runtime.host import Array, give, read
from segmo.runtime.video_runs import places


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


def segment_ids(
    frame_BK: Tensor,
    scene_BK: Tensor,
    mode: str,
    novelty_BK: Tensor | None = None,
    cell_BK: Tensor | None = None,
) -> Tensor:
    """Attention segment of every token, (B, K) int64, with ``SINK`` and ``QUERY`` kept from ``frame_BK``.

    Args:
        frame_BK: frame of each token, text between frames included.
        scene_BK: scene of each token, likewise.
        mode: see :func:`partition_frames`.
        novelty_BK, cell_BK: where no tokens are selected, of all of them: whether the video's features are finite.

    Raises:
        PromptError: the video features hold NaN or infinity.
    """
    frame, scene, novelty, cell = read(frame_BK, scene_BK, novelty_BK, cell_BK)
    segment = frame.copy()
    for row in range(frame.shape[0]):
        inside = places(frame[row] >= 0)
        if not len(inside):
            continue
        if novelty is not None and cell is not None:
            check_finite(novelty[row, inside], frame[row, inside], cell[row, inside])
        frame_T = frame[row, inside]
        head_F = places(np.diff(frame_T, prepend=-1))
        tokens_F = np.diff(np.append(head_F, len(frame_T)))
        segments = partition_frames(scene[row, inside][head_F].tolist(), tokens_F.tolist(), mode)
        segment[row, inside] = np.repeat(segments, tokens_F)
    return give(segment, frame_BK.device)


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
    frame, scene, segment, relevance = read(frame_BK, scene_BK, segment_BK, relevance_BS)
    context = np.zeros(frame.shape, dtype=bool)
    for row in range(frame.shape[0]):
        inside = places(scene[row] >= 0)
        if not len(inside):
            continue
        frame_T, scene_T, segment_T = frame[row, inside], scene[row, inside], segment[row, inside]
        found = _in_last_frames(frame_T, segment_T, tails)
        if relevance is not None:
            found |= _in_best_heads(frame_T, scene_T, relevance[row], scenes)
        context[row, inside] = found
    return give(context, frame_BK.device)


def _in_best_heads(frame_T: Array, scene_T: Array, relevance_S: Array, scenes: int) -> Array:
    """Whether a token is in the head frame of one of the most relevant scenes, (T,) bool."""
    begins_P = places(np.diff(scene_T, prepend=-1))  # of the scenes that are there: CAS may have dropped some
    present_P = scene_T[begins_P]
    best_P = np.argsort(-relevance_S[present_P], kind="stable")[:scenes]
    head_S = np.full(int(scene_T[-1]) + 1, -1)
    head_S[present_P[best_P]] = frame_T[begins_P[best_P]]
    found: Array = frame_T == head_S[scene_T]
    return found


def _in_last_frames(frame_T: Array, segment_T: Array, frames: int) -> Array:
    """Whether a token is in one of the last frames of a segment that another one follows, (T,) bool."""
    at_T = (np.diff(frame_T, prepend=-1) != 0).cumsum()  # dropped frames do not count
    last_S = np.zeros(int(segment_T[-1]) + 1, dtype=np.int64)
    last_S[segment_T] = at_T  # the last of a segment's tokens stays
    found: Array = (at_T > last_S[segment_T] - frames) & (segment_T != segment_T[-1])
    return found
