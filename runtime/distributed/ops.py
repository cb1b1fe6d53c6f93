"""The operators that ``shard-segments`` inserts, each with a fake for shape propagation.

Legend: N prompt tokens, K kept tokens, L tokens of this rank, A query heads, G key/value heads, D head size,
H hidden size, R rows of features.

All ranks run the same graph, so they call these operators in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from segmo.errors import PromptError, RankError
from segmo.runtime.distributed import attention
from segmo.runtime.distributed.kernels import PartKernels
from segmo.runtime.distributed.schedule import pack_rank, rank_schedule, unpack_rank
from segmo.runtime.distributed.session import Settings, fingerprint, session_of
from segmo.runtime.partition.planner import make_plan
from segmo.runtime.partition.workload import Workload
from segmo.runtime.register import operator
from segmo.runtime.schedule import unpack

_Function = TypeVar("_Function", bound=Callable[..., Tensor])


def _fake(op: Any) -> Callable[[_Function], _Function]:
    """Registers the function that gives an operator's output shape."""

    def register(function: _Function) -> _Function:
        op.register_fake(function)
        return function

    return register


@operator("plan_ranks")
def plan_ranks(schedule: Tensor, index_BK: Tensor | None, settings: str) -> Tensor:
    """Plans one prefill and gives this rank's schedule, packed; made once, read by every layer.

    Args:
        schedule: from ``segmo::attention_schedule``. index_BK: the kept positions, to be equal on all ranks.
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
        raise PromptError(
            f"{len(rows)} prompts in a batch or padding on the left: segments are spread over ranks one prompt at "
            "a time, without padding; call the model once per prompt"
        )
    marks = session.ranks.gather(fingerprint(schedule, index_BK).to(_device_of(index_BK)), "prompt")
    different = [rank for rank, mark in enumerate(marks[:, 0].tolist()) if mark != marks[0, 0]]
    if different:
        raise RankError(
            f"rank {different[0]} holds another prompt than rank 0, or kept other tokens of it; give every rank the "
            "same inputs"
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
    return pack_rank(session.schedule)


def _device_of(index_BK: Tensor | None) -> torch.device:
    return torch.device("cpu") if index_BK is None else index_BK.device


@_fake(plan_ranks)
def _(schedule: Tensor, index_BK: Tensor | None, settings: str) -> Tensor:
    return torch.empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


@operator("rank_positions")
def rank_positions(packed: Tensor, like: Tensor) -> Tensor:
    """Which of the kept tokens are on this rank, (1, L) int64 on ``like``'s device."""
    return unpack_rank(packed).positions(like.device)[None]


@_fake(rank_positions)
def _(packed: Tensor, like: Tensor) -> Tensor:
    return like.new_empty((1, torch.library.get_ctx().new_dynamic_size()), dtype=torch.long)


@operator("rank_attention")
def rank_attention(
    q_BALD: Tensor,
    k_BGLD: Tensor,
    v_BGLD: Tensor,
    packed: Tensor,
    scale: float,
    group: str,
    layer: int,
    implementation: str,
) -> Tensor:
    """See :func:`segmo.runtime.distributed.attention.rank_attention`; B is 1, laid out (B, L, A, D)."""
    schedule, ranks = unpack_rank(packed), session_of(group).ranks
    kernels = PartKernels.of(implementation, q_BALD[0], k_BGLD[0])
    out = attention.rank_attention(q_BALD[0], k_BGLD[0], v_BGLD[0], schedule, scale, ranks, layer, kernels)
    return out.transpose(0, 1).contiguous().transpose(0, 1)[None]


@_fake(rank_attention)
def _(
    q_BALD: Tensor,
    k_BGLD: Tensor,
    v_BGLD: Tensor,
    packed: Tensor,
    scale: float,
    group: str,
    layer: int,
    implementation: str,
) -> Tensor:
    batch, heads, length, _ = q_BALD.shape
    return q_BALD.new_empty((batch, length, heads, v_BGLD.shape[3])).transpose(1, 2)


@operator("rank_decode_attention")
def rank_decode_attention(
    q_BATD: Tensor, k_BGND: Tensor, v_BGND: Tensor, scale: float, group: str, layer: int, implementation: str
) -> Tensor:
    """See :func:`segmo.runtime.distributed.attention.rank_decode_attention`; B is 1."""
    session = session_of(group)
    schedule = session.decoding(k_BGND.shape[2], q_BATD.shape[2])
    ranks = session.ranks
    kernels = PartKernels.of(implementation, q_BATD[0], k_BGND[0])
    q_ATD, k_GND, v_GND = q_BATD[0], k_BGND[0], v_BGND[0]
    return attention.rank_decode_attention(q_ATD, k_GND, v_GND, schedule, scale, ranks, layer, kernels)[None]


@_fake(rank_decode_attention)
def _(
    q_BATD: Tensor, k_BGND: Tensor, v_BGND: Tensor, scale: float, group: str, layer: int, implementation: str
) -> Tensor:
    return q_BATD.new_empty((*q_BATD.shape[:3], v_BGND.shape[3]))


@operator("rank_rows")
def rank_rows(features_RH: Tensor, mask_BK: Tensor, index_BL: Tensor) -> Tensor:
    """Of features with one row per flagged token, in order of the prompt, the rows of this rank's tokens."""
    row_K = mask_BK[0].long().cumsum(0) - 1
    index_L = index_BL[0]
    return features_RH[row_K[index_L][mask_BK[0][index_L]]]


@_fake(rank_rows)
def _(features_RH: Tensor, mask_BK: Tensor, index_BL: Tensor) -> Tensor:
    return features_RH.new_empty((torch.library.get_ctx().new_dynamic_size(), *features_RH.shape[1:]))


@operator("join_tokens")
def join_tokens(x: Tensor, packed: Tensor, group: str) -> Tensor:
    """All ranks' tokens in order of the prompt, equal on every rank: (..., L, D) to (..., K, D)."""
    whole = attention.gather_cache(
        x.reshape(-1, *x.shape[-2:]), unpack_rank(packed), session_of(group).ranks, "gather tokens"
    )
    # Also alone, where nothing is gathered, the result must not be the operator's input.
    return whole.reshape(*x.shape[:-2], *whole.shape[-2:]).clone()


@_fake(join_tokens)
def _(x: Tensor, packed: Tensor, group: str) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty((*x.shape[:-2], size, x.shape[-1]))


@operator("from_home")
def from_home(x: Tensor, packed: Tensor, group: str) -> Tensor:
    """The home rank's copy of a replicated tensor; copies may differ by rounding, and then greedy tokens might."""
    return session_of(group).ranks.share(x, unpack_rank(packed).home, "logits").clone()


@_fake(from_home)
def _(x: Tensor, packed: Tensor, group: str) -> Tensor:
    return torch.empty_like(x)
