"""Which frames of a video are kept, before any of them is encoded (CAS, upstream of the vision encoder).

Source: SegMo (CVPR 2026), content-aware sparsification: frames are chosen by the relevance of their scene to the
question and by how much new a scene shows. Which frames of a scene stand for it is k-centre clustering (Gonzalez,
"Clustering to minimize the maximum intercluster distance", 1985) where the paper leaves it open.

Legend: F frames, S scenes, M kept frames, D descriptor size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.scenes import MAX_SCENES, scene_starts
from segmo.runtime.selection import scene_budgets, scene_shares

# A share such as 3/7 of 7 frames is 3 frames, although 3/7 has no exact binary form.
ROUNDING = 1e-6


def frame_count(frames: int, share: float) -> int:
    """M: frames kept of a video, ``ceil(share * F)``, at least one."""
    return max(1, math.ceil(share * frames - ROUNDING))


def frame_share(wanted: int, frames: int) -> float:
    """The share with which :func:`frame_count` is ``min(wanted, F)`` and ``floor(share * V)`` all of their tokens."""
    return min(1.0, wanted / frames + 1e-10)


def frame_budgets(share: list[float], size: list[int], total: int) -> list[int]:
    """m_k: frames that each scene keeps, ``min(total, F)`` together and never more than the scene has.

    - No fewer frames to hand out than there are: every scene keeps all of its frames.
    - At least as many scenes as frames to hand out: the scenes with the largest shares keep one frame each, ties by
      order.
    - In between: every scene keeps one frame, and the rest goes out in proportion to the shares, by largest remainder.

    Args:
        share: non-negative weight of each scene.
        size: frames of each scene, at least one.
        total: frames to hand out, at least one.
    """
    if total >= sum(size):
        return list(size)
    if len(size) >= total:
        best = sorted(range(len(size)), key=lambda scene: (-share[scene], scene))[:total]
        return [int(scene in best) for scene in range(len(size))]
    return scene_budgets(share, size, total, [1] * len(size))


def frame_distance(descriptor_FD: Tensor) -> Tensor:
    """How much a frame differs from the one before, mean absolute difference, (F,) fp32; 0 for the first."""
    distance_F = torch.zeros(descriptor_FD.shape[0], device=descriptor_FD.device, dtype=torch.float32)
    distance_F[1:] = (descriptor_FD[1:].float() - descriptor_FD[:-1].float()).abs().mean(dim=1)
    return distance_F


def frame_scenes(descriptor_FD: Tensor, max_scenes: int = MAX_SCENES) -> Tensor:
    """Scene of each frame of one video, (F,) int64, by the rule of :func:`segmo.runtime.scenes.scene_starts`.

    Args:
        descriptor_FD: what a frame looks like, such as its colours on a coarse grid.
        max_scenes: at most this many scenes.
    """
    first_F = torch.zeros(descriptor_FD.shape[0], dtype=torch.bool)
    first_F[0] = True
    starts = scene_starts(frame_distance(descriptor_FD).cpu(), first_F, max_scenes)
    scene_F = torch.zeros(descriptor_FD.shape[0], dtype=torch.long)
    scene_F[starts[1:]] = 1
    return scene_F.cumsum(0)


def representative(descriptor_FD: Tensor, scene_F: Tensor) -> Tensor:
    """The frame of each scene that is most like the scene's average, (S,) int64, ties by order."""
    found = []
    for scene in range(int(scene_F[-1]) + 1):
        inside = (scene_F == scene).nonzero()[:, 0]
        part = descriptor_FD[inside].float()
        found.append(int(inside[int((part - part.mean(0)).abs().mean(1).argmin())]))
    return torch.tensor(found)


def scene_dynamics(descriptor_FD: Tensor, scene_F: Tensor) -> Tensor:
    """How much new each scene shows, (S,) fp32: 1 for its first frame, and for others their difference to the frame
    before as a part of what a cut makes in this video (the median over cuts), at most 1.
    """
    distance_F = frame_distance(descriptor_FD).cpu()
    head_F = torch.ones_like(scene_F, dtype=torch.bool)
    head_F[1:] = scene_F[1:] != scene_F[:-1]
    cuts = distance_F[1:][head_F[1:]]
    scale = cuts.median() if cuts.numel() else distance_F.max()
    novelty_F = (distance_F / scale.clamp(min=1e-12)).clamp(max=1).masked_fill(head_F, 1)
    return torch.zeros(int(scene_F[-1]) + 1, dtype=torch.float32).index_add_(0, scene_F, novelty_F)


def spread_frames(descriptor_FD: Tensor, first: int, count: int) -> list[int]:
    """``count`` frames that stand for all: ``first``, then always the frame least like any taken, ties by order."""
    taken = [first]
    apart_F = torch.full((descriptor_FD.shape[0],), torch.inf, device=descriptor_FD.device, dtype=torch.float32)
    while len(taken) < count:
        away_F = (descriptor_FD.float() - descriptor_FD[taken[-1]].float()).abs().mean(dim=1)
        apart_F = torch.minimum(apart_F, away_F)
        apart_F[taken] = -1
        taken.append(int(apart_F.argmax()))
    return taken


def choose_frames(
    descriptor_FD: Tensor, scene_F: Tensor, relevance_S: Tensor, total: int, balance: float = 0.5
) -> Tensor:
    """The frames to keep, ascending, (min(total, F),) int64.

    Args:
        descriptor_FD: what a frame looks like.
        scene_F: scene of each frame, ascending from 0 without gaps.
        relevance_S: relevance of each scene to the question, on any scale.
        total: frames to keep, at least one.
        balance: weight of relevance against dynamics.

    Raises:
        PromptError: a relevance is not finite.
    """
    size = torch.bincount(scene_F).tolist()
    if not bool(torch.isfinite(relevance_S).all()):
        scene = int((~torch.isfinite(relevance_S)).nonzero()[0])
        raise PromptError(f"the relevance of scene {scene} is NaN or infinite; check the scores that were handed in")
    share = scene_shares(relevance_S.cpu(), scene_dynamics(descriptor_FD, scene_F), balance).tolist()
    budget = frame_budgets(share, size, total)
    heads = representative(descriptor_FD, scene_F).tolist()
    kept: list[int] = []
    start = 0
    for scene, have in enumerate(size):
        if budget[scene]:
            part = descriptor_FD[start : start + have]
            kept += [start + frame for frame in spread_frames(part, heads[scene] - start, budget[scene])]
        start += have
    return torch.tensor(sorted(kept))


def scene_means(score_F: Tensor, scene_F: Tensor) -> Tensor:
    """Scores of frames averaged over each scene, (S,) fp32."""
    scenes = int(scene_F[-1]) + 1
    total_S = torch.zeros(scenes, dtype=torch.float32).index_add_(0, scene_F, score_F.float().cpu())
    return total_S / torch.bincount(scene_F, minlength=scenes)
