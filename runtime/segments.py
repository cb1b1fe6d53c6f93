"""Attention segments and context tokens (LSP and GCI).

Legend: B batch, K tokens (kept ones, after CAS), S segments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _group(sizes: list[int], target: int) -> list[list[int]]:
    """Merges neighbouring units until ``target`` groups are left, always the pair that is smallest together."""
    groups = [[unit] for unit in range(len(sizes))]
    totals = list(sizes)
    while len(groups) > target:
        pair = min(range(len(groups) - 1), key=lambda i: totals[i] + totals[i + 1])
        groups[pair] += groups.pop(pair + 1)
        totals[pair] += totals.pop(pair + 1)
    return groups


def _split_point(frames: list[int], tokens: dict[int, int]) -> int:
    """Where to cut a run of frames so that both sides are as equal in tokens as they can be."""
    whole = sum(tokens[frame] for frame in frames)
    left, best, best_gap = 0, 1, float("inf")
    for cut, frame in enumerate(frames[:-1], start=1):
        left += tokens[frame]
        gap = abs(whole - 2 * left)
        if gap < best_gap:
            best, best_gap = cut, gap
    return best


def partition_frames(frames: list[int], scenes: list[int], tokens: list[int], mode: str) -> list[int]:
    """Segment of each frame.

    Args:
        frames: frame indices that still hold tokens, ascending.
        scenes: scene of each of them, non-decreasing.
        tokens: tokens of each of them.
        mode: ``"scene"``: a segment per scene. ``"N"``: scenes are merged (smallest neighbours first) or split (largest
            first, at a frame) until there are N. ``"equal:N"``: N segments of about equal token counts, cut at frames.
            There are never more segments than frames.
    """
    count = dict(zip(frames, tokens, strict=True))
    if mode.startswith("equal:"):
        return _equal_partition(tokens, int(mode.removeprefix("equal:")))
    runs: list[list[int]] = []
    for position, frame in enumerate(frames):
        if position == 0 or scenes[position] != scenes[position - 1]:
            runs.append([])
        runs[-1].append(frame)
    if mode != "scene":
        target = min(int(mode), len(frames))
        grouped = _group([sum(count[frame] for frame in run) for run in runs], target)
        runs = [[frame for unit in group for frame in runs[unit]] for group in grouped]
        while len(runs) < target:
            widest = max(
                (i for i, run in enumerate(runs) if len(run) > 1),
                key=lambda i: (sum(count[frame] for frame in runs[i]), -i),
            )
            cut = _split_point(runs[widest], count)
            runs[widest : widest + 1] = [runs[widest][:cut], runs[widest][cut:]]
    return [segment for segment, run in enumerate(runs) for _ in run]


def _equal_partition(tokens: list[int], target: int) -> list[int]:
    """Assigns each frame to the segment in which its middle token falls; empty segments are closed up."""
    whole, seen, segments = sum(tokens), 0, []
    for size in tokens:
        segments.append(int((seen + size / 2) * target / whole) if whole else 0)
        seen += size
    renumber = {segment: i for i, segment in enumerate(dict.fromkeys(segments))}
    return [renumber[segment] for segment in segments]


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
        segments = partition_frames(frames.tolist(), scene_of.tolist(), tokens.tolist(), mode)
        segment_BK[row, inside] = torch.tensor(segments, device=frame_BK.device)[position]
    return segment_BK


def context_tokens(frame_BK: Tensor, scene_BK: Tensor, relevance_BS: Tensor, scenes: int) -> Tensor:
    """Global context: the tokens of the head frame (first kept frame) of the most relevant scenes, (B, K) bool.

    Args:
        frame_BK, scene_BK: frame and scene of each token.
        relevance_BS: relevance of each scene, -inf where there is none; ties by order.
        scenes: how many scenes' head frames (the paper's m).
    """
    context_BK = torch.zeros_like(frame_BK, dtype=torch.bool)
    for row in range(frame_BK.shape[0]):
        present = torch.unique(scene_BK[row][scene_BK[row] >= 0])
        order = torch.argsort(relevance_BS[row, present], descending=True, stable=True)
        for scene in present[order[:scenes]].tolist():
            tokens = scene_BK[row] == scene
            context_BK[row] |= tokens & (frame_BK[row] == frame_BK[row][tokens].min())
    return context_BK
