"""Which video tokens are kept: budgets per scene and the choice inside a scene (CAS, steps 3 and 4).

Legend: B batch, N prompt tokens, K kept tokens, V video tokens of a row, S scenes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import check_finite
from segmo.runtime.host import Array, give, read
from segmo.runtime.video_runs import places

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
    novelty_V: Array, scene_V: Array, relevance_S: Array, total: int, balance: float, keep_last: bool
) -> list[int]:
    """Tokens that each scene of one row keeps, ``total`` together.

    Raises:
        PromptError: a scene's relevance is not finite.
    """
    size_S = np.bincount(scene_V)
    relevance_S = relevance_S[: len(size_S)]
    if not np.isfinite(relevance_S).all():
        raise PromptError(
            f"the relevance of scene {int((~np.isfinite(relevance_S)).argmax())} is NaN or "
            "infinite; check the question's embeddings, the weights and the dtype of the model"
        )
    relevant_S = torch.from_numpy(relevance_S)
    dynamics_S = torch.zeros_like(relevant_S).index_add_(0, torch.from_numpy(scene_V), torch.from_numpy(novelty_V))
    share = scene_shares(relevant_S, dynamics_S, balance).tolist()
    newest_S = np.zeros(len(size_S), dtype=novelty_V.dtype)
    np.maximum.at(newest_S, scene_V, novelty_V)
    size = size_S.tolist()
    least = _scene_floor(size, (newest_S >= np.float32(FRESH)).tolist(), total, int(scene_V[-1]) if keep_last else None)
    return scene_budgets(share, size, total, least)


def _row_video(row: int, cell_N: Array, encoded_N: Array | None, kept: int) -> tuple[Array, int, bool]:
    """What can be chosen from in one row: its video tokens, how many of them are kept, whether the last one must be.

    Args:
        row: number of the row.
        cell_N: of the row; text has cell -1.
        encoded_N: False at video tokens whose frame was never encoded; None where all were.
        kept: K.

    Returns:
        ``video_V``: positions of the video tokens that are there, (V,). Then the number kept, and whether the prompt
        ends in its video.

    Raises:
        PromptError: the row's video tokens do not fit ``kept``, or a video at its end has no last token.
    """
    inside_N = cell_N >= 0
    there_N = inside_N if encoded_N is None else inside_N & encoded_N
    video_V = places(there_N)
    length, video = cell_N.shape[0], len(video_V)
    total, ends_in_video = kept - (length - int(inside_N.sum())), bool(inside_N[-1])
    if ends_in_video and not there_N[-1]:
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
    if video and not total:
        warn_of_none(video)
    return video_V, total, ends_in_video


def warn_of_none(video: int) -> None:
    """Says that an answer is given without the video."""
    warnings.warn(f"keep leaves none of {video} video tokens: nothing of the video is seen; raise keep", stacklevel=2)


def _select_row(novelty_V: Array, scene_V: Array, budgets: list[int], keep_last: bool) -> Array:
    """Kept flags of one row's video tokens, (V,) bool with as many of each scene as its budget, the last if asked."""
    size_S, budget_S = np.bincount(scene_V), np.array(budgets)
    if keep_last:
        novelty_V = np.append(novelty_V[:-1], np.float32(np.inf))
    # Scene by scene, newest first, ties by order.
    by_novelty = np.argsort(-novelty_V, kind="stable")
    short_V = scene_V.astype(np.min_scalar_type(len(size_S)))  # short numbers are sorted in one pass
    order = by_novelty[np.argsort(short_V[by_novelty], kind="stable")]
    first_S = size_S.cumsum() - size_S
    rank = np.arange(len(order)) - first_S[scene_V[order]]
    kept_V = np.zeros(len(scene_V), dtype=bool)
    kept_V[order] = rank < budget_S[scene_V[order]]
    return kept_V


@dataclass(frozen=True)
class Chosen:
    """The tokens that a batch keeps.

    Attributes:
        index_BK: their positions, ascending.
        budgets: for each row the tokens that its scenes keep; empty where none of its video is kept.
    """

    index_BK: Array
    budgets: list[list[int]]


def choose_tokens(
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    relevance_BS: Tensor,
    kept: int,
    balance: float,
    encoded_BN: Tensor | None = None,
) -> Chosen:
    """The choice of :func:`select_tokens`, which is made on the host.

    Raises:
        PromptError: as there; and the video features hold NaN or infinity, which a device says here.
    """
    novelty, frame, cell, scene, relevance, encoded = read(
        novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, encoded_BN
    )
    rows, all_budgets = [], []
    for row in range(frame.shape[0]):
        keep_N, budgets = cell[row] < 0, list[int]()
        video_V, total, ends_in_video = _row_video(row, cell[row], None if encoded is None else encoded[row], kept)
        novelty_V, scene_V = novelty[row, video_V], scene[row, video_V]
        check_finite(novelty_V, frame[row, video_V], cell[row, video_V])
        if total:
            budgets = row_budgets(novelty_V, scene_V, relevance[row], total, balance, ends_in_video)
            keep_N[video_V] = _select_row(novelty_V, scene_V, budgets, ends_in_video)
        rows.append(places(keep_N))
        all_budgets.append(budgets)
    return Chosen(np.stack(rows), all_budgets)


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
    chosen = choose_tokens(novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, kept, balance, encoded_BN)
    return give(chosen.index_BK, frame_BN.device)
