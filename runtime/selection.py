"""Which video tokens are kept: budgets per scene and the choice inside a scene (CAS, steps 3 and 4).

Legend: B batch, N prompt tokens, K kept tokens, V video tokens of a row, S scenes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segmo.errors import PromptError

SCENE_FLOOR = 1  # tokens that every scene with something new keeps, as long as the budget has one for each
ROUNDING = 64  # spacings of floating point: scenes whose relevance differs by no more are equally relevant
FRESH = 0.2  # novelty from which a scene has something new: less is noise, as where a scene goes on after a flash


def kept_count(length: int, video_total: int, batch: int, keep: float) -> int:
    """K: tokens kept in each row, from shapes alone: all text, and ``floor(keep * V)`` of V video tokens.

    Args:
        length: N. video_total: video tokens of the whole batch. batch: B. keep: 0 < keep <= 1.
    """
    video = video_total // batch
    return length - video + math.floor(keep * video)


def scene_budgets(share: list[float], size: list[int], total: int, least: list[int]) -> list[int]:
    """Splits ``total`` tokens over scenes: proportional to ``share``, exact, never more than ``size``.

    Every scene first gets its ``least``; shares divide what is left, and what a full scene cannot take goes
    to the others. Fractions are settled by the largest remainder, ties by order. Deterministic.

    Args:
        share: non-negative weights, one per scene.
        size: tokens each scene has.
        total: tokens to hand out, sum(least) <= total <= sum(size).
        least: tokens each scene gets whatever its share, at most ``size``.
    """
    budget = list(least)
    quota = [float(have) for have in budget]
    free = {scene for scene, have in enumerate(size) if have > budget[scene]}
    left = float(total - sum(budget))
    while free and left > 0:
        weight = {scene: share[scene] for scene in free}
        if sum(weight.values()) <= 0:
            weight = {scene: float(size[scene] - budget[scene]) for scene in free}
        unit = left / sum(weight.values())
        full = {scene for scene in free if budget[scene] + unit * weight[scene] >= size[scene]}
        if not full:
            for scene in free:
                quota[scene] = budget[scene] + unit * weight[scene]
            break
        for scene in full:
            quota[scene] = float(size[scene])
            left -= size[scene] - budget[scene]
        free -= full
    budget = [min(math.floor(value + 1e-9), have) for value, have in zip(quota, size, strict=True)]
    # Rounding down loses less than one token per scene, so one round by remainder settles it; the second
    # round, over any scene with room, only ever runs for rounding errors of the quotas themselves.
    by_remainder = sorted(range(len(size)), key=lambda scene: (budget[scene] - quota[scene], scene))
    while (missing := total - sum(budget)) > 0:
        for scene in [s for s in by_remainder if budget[s] < size[s]][:missing]:
            budget[scene] += 1
    return budget


def scene_shares(relevance_S: Tensor, dynamics_S: Tensor, balance: float) -> Tensor:
    """``balance * relevance + (1 - balance) * dynamics``, each brought to sum 1; (S,) fp64.

    Relevance is standardised over the scenes and passed through a softmax, so that scorers of any scale and
    offset can be compared; dynamics is the novelty of all the scene's tokens together. Where no scene is more relevant
    than another, differences within rounding are not blown up: what is left is coverage, by scenes and by novelty.
    """
    relevance, spacing = relevance_S.double(), torch.finfo(relevance_S.dtype).eps
    away = relevance - relevance.mean()
    alike = away.abs().max() <= ROUNDING * spacing * relevance.abs().max()
    relevance = (away / away.square().mean().sqrt().clamp(min=1e-12)).masked_fill(alike, 0).softmax(0)
    dynamics = dynamics_S.double().clamp(min=0)
    dynamics = dynamics / dynamics.sum().clamp(min=1e-12)
    return balance * relevance + (1 - balance) * dynamics


def _scene_floor(size: list[int], fresh: list[bool], total: int, last: int | None) -> list[int]:
    """Least budget of each scene; without enough for all scenes, only the ``last`` one's token is sure."""
    least = [
        min(have, SCENE_FLOOR) if new or scene == last else 0
        for scene, (have, new) in enumerate(zip(size, fresh, strict=True))
    ]
    if sum(least) > total:
        least = [int(scene == last) for scene in range(len(size))]
    return least


def row_budgets(
    novelty_V: Tensor, scene_V: Tensor, relevance_S: Tensor, total: int, balance: float, keep_last: bool
) -> list[int]:
    """Tokens that each scene of one row keeps, ``total`` together.

    Raises:
        PromptError: a scene's relevance is not finite.
    """
    size = torch.bincount(scene_V).tolist()
    relevance_S = relevance_S[: len(size)]
    if not bool(torch.isfinite(relevance_S).all()):
        raise PromptError(
            f"the relevance of scene {int((~torch.isfinite(relevance_S)).nonzero()[0])} is NaN or "
            "infinite; check the question's embeddings, the weights and the dtype of the model"
        )
    dynamics_S = torch.zeros_like(relevance_S).index_add_(0, scene_V, novelty_V)
    share = scene_shares(relevance_S, dynamics_S, balance).tolist()
    newest_S = torch.zeros_like(relevance_S).scatter_reduce_(0, scene_V, novelty_V, "amax")
    least = _scene_floor(size, (newest_S >= FRESH).tolist(), total, int(scene_V[-1]) if keep_last else None)
    return scene_budgets(share, size, total, least)


def row_video(row: int, cell_N: Tensor, encoded_BN: Tensor | None, kept: int) -> tuple[Tensor, int, bool]:
    """What can be chosen from in one row: its video tokens, how many of them are kept, whether the last one must be.

    Args:
        row: number of the row.
        cell_N: of the row; text has cell -1.
        encoded_BN: False at video tokens whose frame was never encoded; None where all were.
        kept: K.

    Returns:
        ``video_V``: positions of the video tokens that are there, (V,). Then the number kept, and whether the prompt
        ends in its video.

    Raises:
        PromptError: the row's video tokens do not fit ``kept``, or a video at its end has no last token.
    """
    inside_N = cell_N >= 0
    there_N = inside_N if encoded_BN is None else inside_N & encoded_BN[row]
    video_V = there_N.nonzero()[:, 0]
    length, video = cell_N.shape[0], video_V.numel()
    total, ends_in_video = kept - (length - int(inside_N.sum())), bool(inside_N[-1])
    if ends_in_video and not bool(there_N[-1]):
        raise PromptError(
            f"row {row} ends in a video whose last frame was not encoded, so there is no next token to predict; "
            "put the question behind the video, or set frames=1"
        )
    if not ends_in_video <= total <= video:
        raise PromptError(
            f"row {row} has {video} video tokens of {length}, which does not fit {kept} kept tokens: every row of a "
            "batch must hold equally many video tokens, and a prompt that ends in a video must keep at least one of "
            "them"
        )
    return video_V, total, ends_in_video


def _select_row(
    novelty_V: Tensor, scene_V: Tensor, relevance_S: Tensor, total: int, balance: float, keep_last: bool
) -> Tensor:
    """Kept flags of one row's video tokens, (V,) bool with exactly ``total`` set, the last if asked for."""
    size_S = torch.bincount(scene_V)
    budgets = row_budgets(novelty_V, scene_V, relevance_S, total, balance, keep_last)
    budget_S = torch.tensor(budgets, device=scene_V.device)
    if keep_last:
        novelty_V[-1] = torch.inf
    # Scene by scene, newest first, ties by order.
    by_novelty = torch.argsort(novelty_V, descending=True, stable=True)
    order = by_novelty[torch.argsort(scene_V[by_novelty], stable=True)]
    first_S = size_S.cumsum(0) - size_S
    rank = torch.arange(order.shape[0], device=order.device) - first_S[scene_V[order]]
    kept_V = torch.zeros_like(scene_V, dtype=torch.bool)
    kept_V[order] = rank < budget_S[scene_V[order]]
    return kept_V


def select_tokens(
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    relevance_BS: Tensor,
    kept: int,
    balance: float,
    encoded_BN: Tensor | None = None,
) -> Tensor:
    """Positions of the tokens to keep, ascending, (B, K) int64: all text and the best video tokens.

    The prompt's last token is always kept, because its logits give the next token.

    Args:
        novelty_BN: from :func:`segmo.runtime.novelty.scene_novelty`.
        cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        scene_BN: from :func:`segmo.runtime.scenes.find_scenes`.
        relevance_BS: from a scorer of :mod:`segmo.runtime.relevance`.
        kept: K, from :func:`kept_count`.
        balance: weight of relevance against dynamics.
        encoded_BN: False at video tokens whose frame was never encoded, which cannot be kept.

    Raises:
        PromptError: a row's video tokens do not fit ``kept``, or a relevance is NaN or infinite.
    """
    batch = frame_BN.shape[0]
    index_BK = torch.empty(batch, kept, dtype=torch.long, device=frame_BN.device)
    for row in range(batch):
        keep_N = cell_BN[row] < 0
        video_V, total, ends_in_video = row_video(row, cell_BN[row], encoded_BN, kept)
        if total:
            keep_N[video_V] = _select_row(
                novelty_BN[row, video_V],
                scene_BN[row, video_V],
                relevance_BS[row],
                total,
                balance,
                keep_last=ends_in_video,
            )
        index_BK[row] = keep_N.nonzero()[:, 0]
    return index_BK
