"""The attention operators that ``shard-segments`` inserts, each with a fake for shape propagation.

Legend: L tokens of this rank, N cached tokens, T new tokens, A query heads, G key/value heads, D head size; B is 1.

All ranks run the same graph, so they call these operators in the same order.
"""

from __future__ import annotations

from torch import Tensor

from segmo.runtime.distributed import attention
from segmo.runtime.distributed.kernels import PartKernels
from segmo.runtime.distributed.schedule import RankSchedule, unpack_rank
from segmo.runtime.distributed.session import session_of
from segmo.runtime.register import fake, operator


def _layer(
    schedule: RankSchedule, group: str, number: int, implementation: str, q: Tensor, k: Tensor
) -> attention.RankLayer:
    """What stands behind the operators' arguments, which are plain values."""
    kernels = PartKernels.of(implementation, q[0], k[0])
    return attention.RankLayer(schedule, session_of(group).ranks, number, kernels)


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
    at = _layer(unpack_rank(packed), group, layer, implementation, q_BALD, k_BGLD)
    out = attention.rank_attention(q_BALD[0], k_BGLD[0], v_BGLD[0], scale, at)
    return out.transpose(0, 1).contiguous().transpose(0, 1)[None]


@fake(rank_attention)
def _(q_BALD: Tensor, v_BGLD: Tensor) -> Tensor:
    batch, heads, length, _ = q_BALD.shape
    return q_BALD.new_empty((batch, length, heads, v_BGLD.shape[3])).transpose(1, 2)


@operator("rank_last_attention")
def rank_last_attention(
    q_BA1D: Tensor,
    k_BGLD: Tensor,
    v_BGLD: Tensor,
    packed: Tensor,
    scale: float,
    group: str,
    layer: int,
    implementation: str,
) -> Tensor:
    """See :func:`segmo.runtime.distributed.attention.rank_last_attention`; B is 1."""
    at = _layer(unpack_rank(packed), group, layer, implementation, q_BA1D, k_BGLD)
    return attention.rank_last_attention(q_BA1D[0], k_BGLD[0], v_BGLD[0], scale, at)[None]


@fake(rank_last_attention)
def _(q_BA1D: Tensor, v_BGLD: Tensor) -> Tensor:
    return q_BA1D.new_empty((*q_BA1D.shape[:3], v_BGLD.shape[3]))


@operator("rank_decode_attention")
def rank_decode_attention(
    q_BATD: Tensor, k_BGND: Tensor, v_BGND: Tensor, scale: float, group: str, layer: int, implementation: str
) -> Tensor:
    """See :func:`segmo.runtime.distributed.attention.rank_decode_attention`; B is 1."""
    schedule = session_of(group).decoding(k_BGND.shape[2], q_BATD.shape[2])
    at = _layer(schedule, group, layer, implementation, q_BATD, k_BGND)
    return attention.rank_decode_attention(q_BATD[0], k_BGND[0], v_BGND[0], scale, at)[None]


@fake(rank_decode_attention)
def _(q_BATD: Tensor, v_BGND: Tensor) -> Tensor:
    return q_BATD.new_empty((*q_BATD.shape[:3], v_BGND.shape[3]))
