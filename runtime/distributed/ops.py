"""The operators that ``shard-segments`` inserts, each with a fake for shape propagation.

Legend: N prompt tokens, K kept tokens, L tokens of this rank, A query heads, G key/value heads, D head size,
H hidden size, R rows of features.

All ranks run the same graph, so they call these operators in the same order.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import segmo.runtime.distributed.attention_ops  # noqa: F401  # registers attention over ranks
from segmo.errors import PromptError, RankError
from segmo.runtime import features
from segmo.runtime.distributed.attention import gather_cache
from segmo.runtime.distributed.features import (
    Spread,
    deal_rows,
    encoder_of,
    is_spread,
    scan_spread,
    scene_novelty_spread,
    spread_fit,
)
from segmo.runtime.distributed.ranks import ALONE
from segmo.runtime.distributed.schedule import pack_rank, rank_schedule, unpack_rank
from segmo.runtime.distributed.session import Settings, current_words, fingerprint, session_of
from segmo.runtime.kernels import scan as generated_scan
from segmo.runtime.lowering import runs_generated
from segmo.runtime.ops import scan_kernel, token_distance
from segmo.runtime.partition.planner import make_plan
from segmo.runtime.partition.workload import Workload
from segmo.runtime.register import fake, operator
from segmo.runtime.relevance import embedding_relevance
from segmo.runtime.schedule import unpack

ONE_PROMPT = "segments are spread over ranks one prompt at a time, without padding; call the model once per prompt"


@operator("rank_scan_video")
def rank_scan_video(
    embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, group: str, early: bool, selects: bool, implementation: str
) -> tuple[Tensor, Tensor]:
    """:func:`segmo.runtime.features.scan_video` of one prompt, each rank doing the frames that it encoded.

    Args:
        early: whether tokens are dealt out before the first layer, so that a rank needs no other features.
        selects: whether tokens are selected by their novelty.
        implementation: as :func:`segmo.runtime.ops.scan_video`'s.

    Raises:
        PromptError: several prompts, or features that are spread where every rank needs all of them.
    """
    if frame_BN.shape[0] != 1:
        raise PromptError(f"{frame_BN.shape[0]} prompts in a batch: {ONE_PROMPT}")
    session = session_of(group)
    spread = Spread.of(frame_BN[0], cell_BN[0], session.ranks)
    session.spread, session.pending = is_spread(embeds_BNH[0], spread), False
    if session.spread and not early:
        raise PromptError(
            'with scorer="attention" every rank computes the first layers in full and needs all features; '
            "call encode_video without spread=True, or use another scorer"
        )
    generated = runs_generated(implementation, lambda: scan_kernel(embeds_BNH))
    scan = generated_scan.scan_tokens if generated else features.scan_tokens
    novelty_N, similarity_N = scan_spread(embeds_BNH[0], frame_BN[0], cell_BN[0], spread, session.spread, selects, scan)
    return novelty_N[None], similarity_N[None]


@fake(rank_scan_video)
def _(embeds_BNH: Tensor, frame_BN: Tensor) -> tuple[Tensor, Tensor]:
    shape = frame_BN.shape
    return embeds_BNH.new_empty(shape, dtype=torch.float32), embeds_BNH.new_empty(shape, dtype=torch.float32)


@operator("rank_scene_novelty")
def rank_scene_novelty(
    embeds_BNH: Tensor,
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    group: str,
    implementation: str,
) -> Tensor:
    """:func:`segmo.runtime.novelty.scene_novelty` of one prompt, each rank doing the frames that it encoded."""
    session = session_of(group)
    spread = Spread.of(frame_BN[0], cell_BN[0], session.ranks)
    compare = token_distance(embeds_BNH, implementation)
    scene_N = scene_BN[0].to(frame_BN.device)
    found_N = scene_novelty_spread(
        embeds_BNH[0], novelty_BN[0], frame_BN[0], cell_BN[0], scene_N, spread, session.spread, compare
    )
    return found_N[None]


@fake(rank_scene_novelty)
def _(novelty_BN: Tensor) -> Tensor:
    return torch.empty_like(novelty_BN)


@operator("rank_relevance")
def rank_relevance(
    embeds_BNH: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    max_scenes: int,
    group: str,
    frame_BN: Tensor | None = None,
) -> Tensor:
    """:func:`segmo.runtime.relevance.embedding_relevance`, each rank doing the frames that it encoded."""
    fit = functools.partial(spread_fit, session_of(group).ranks)
    return embedding_relevance(embeds_BNH, scene_BN, cell_BN, question_BN, max_scenes, fit, frame_BN)


@fake(rank_relevance)
def _(embeds_BNH: Tensor, scene_BN: Tensor, max_scenes: int) -> Tensor:
    return embeds_BNH.new_empty((scene_BN.shape[0], max_scenes), dtype=torch.float32)


@operator("plan_ranks")
def plan_ranks(schedule: Tensor, index_BK: Tensor | None, frame_BN: Tensor, cell_BN: Tensor, settings: str) -> Tensor:
    """Plans one prefill and gives this rank's schedule, packed; made once, read by every layer.

    Args:
        schedule: from ``segmo::attention_schedule``. index_BK: the kept positions, to be equal on all ranks.
        frame_BN, cell_BN: of the whole prompt; they say which rank encoded what.
        settings: :class:`segmo.runtime.distributed.session.Settings` as JSON.

    Raises:
        PromptError: more than one prompt at a time, or padding.
        RankError: the ranks hold different prompts, or kept different tokens.
        PlanError: the prompt fits no memory.
    """
    chosen = Settings.from_json(settings)
    session = session_of(chosen.group)
    rows = unpack(schedule)
    if len(rows) != 1 or rows[0].start != 0:
        found = f"{len(rows)} prompts in a batch" if len(rows) != 1 else "padding on the left"
        raise PromptError(f"{found}: {ONE_PROMPT}")
    if rows[0].query_start == rows[0].end:
        raise PromptError(
            "the prompt ends in its video; over ranks text has to follow it, such as the question, because the last "
            "token is computed on every rank"
        )
    marks = session.ranks.gather(fingerprint(schedule, index_BK, current_words()).to(_device_of(index_BK)), "prompt")
    different = [rank for rank, mark in enumerate(marks[:, 0].tolist()) if mark != marks[0, 0]]
    if different:
        raise RankError(
            f"rank {different[0]} holds another prompt than rank 0, or kept other tokens of it; give every rank the "
            f"same inputs. {ALONE}"
        )
    plan = make_plan(
        Workload.of_schedule(rows[0]),
        chosen.shape,
        chosen.devices,
        chosen.method,
        chosen.split,
        chosen.cache,
    )
    session.schedule = rank_schedule(plan, rows[0], session.ranks.rank)
    session.plan = plan
    session.encoder_K = None
    if session.spread:
        encoder_N = encoder_of(frame_BN[0], cell_BN[0], session.ranks)
        session.encoder_K = encoder_N if index_BK is None else encoder_N[index_BK[0].to(encoder_N.device)]
    session.spread = False
    return pack_rank(session.schedule)


def _device_of(index_BK: Tensor | None) -> torch.device:
    return torch.device("cpu") if index_BK is None else index_BK.device


@fake(plan_ranks)
def _() -> Tensor:
    return torch.empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


@operator("rank_positions")
def rank_positions(packed: Tensor, like: Tensor) -> Tensor:
    """Which of the kept tokens are on this rank, (1, L) int64 on ``like``'s device."""
    return unpack_rank(packed).positions(like.device)[None]


@fake(rank_positions)
def _(like: Tensor) -> Tensor:
    return like.new_empty((1, torch.library.get_ctx().new_dynamic_size()), dtype=torch.long)


@operator("rank_tokens")
def rank_tokens(x_BKH: Tensor, index_BL: Tensor, packed: Tensor, group: str) -> Tensor:
    """Embeddings of this rank's tokens, (1, L, H); those that another rank encoded come from there."""
    session = session_of(group)
    if session.encoder_K is None:
        return x_BKH[:, index_BL[0]]
    row_K = torch.arange(x_BKH.shape[1], device=x_BKH.device)
    return deal_rows(x_BKH[0], row_K, session.encoder_K, unpack_rank(packed), session.ranks)[None]


@fake(rank_tokens)
def _(x_BKH: Tensor, index_BL: Tensor) -> Tensor:
    return x_BKH.new_empty((1, index_BL.shape[1], *x_BKH.shape[2:]))


@operator("rank_rows")
def rank_rows(features_RH: Tensor, mask_BK: Tensor, index_BL: Tensor, packed: Tensor, group: str) -> Tensor:
    """Of features with one row per flagged token, in order of the prompt, the rows of this rank's tokens."""
    session = session_of(group)
    row_K = (mask_BK[0].long().cumsum(0) - 1).masked_fill(~mask_BK[0], -1)
    if session.encoder_K is None:
        row_L = row_K[index_BL[0]]
        return features_RH[row_L[row_L >= 0]]
    return deal_rows(features_RH, row_K, session.encoder_K, unpack_rank(packed), session.ranks)


@fake(rank_rows)
def _(features_RH: Tensor) -> Tensor:
    return features_RH.new_empty((torch.library.get_ctx().new_dynamic_size(), *features_RH.shape[1:]))


@operator("join_tokens")
def join_tokens(x: Tensor, dim: int, packed: Tensor, length: int, group: str) -> Tensor:
    """All ranks' tokens in order of the prompt, equal on every rank: ``dim`` holds L of them, and then K.

    Args:
        length: K.
    """
    first = x.movedim(dim, 0)
    rows_1LD = first.reshape(1, first.shape[0], -1)
    whole_1KD = gather_cache(rows_1LD, unpack_rank(packed), session_of(group).ranks, "gather tokens")
    whole = whole_1KD[0].view(length, *first.shape[1:]).movedim(0, dim)
    # Also alone, where nothing is gathered, the result must not be the operator's input.
    return whole.clone(memory_format=torch.contiguous_format)


@fake(join_tokens)
def _(x: Tensor, dim: int, length: int) -> Tensor:
    size = list(x.shape)
    size[dim] = length
    return x.new_empty(size)


@operator("from_home")
def from_home(x: Tensor, packed: Tensor, group: str) -> Tensor:
    """The home rank's copy of a replicated tensor; copies may differ by rounding, and then greedy tokens might."""
    return session_of(group).ranks.share(x, unpack_rank(packed).home, "logits").clone()


@fake(from_home)
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
