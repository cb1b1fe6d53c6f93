"""The attention operators that ``shard-segments`` inserts, each with a fake for shape propagation.

Legend: L tokens of this rank, N cached tokens, T new tokens, A query heads, G key/value heads, D head size, E that
of values; B is 1.

All ranks run the same graph, so they call these operators in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import pad

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


def _of_one_size(
    attend: Callable[..., Tensor],
    q_BAnD: Tensor,
    k_BGKD: Tensor,
    v_BGKE: Tensor,
    schedule: RankSchedule,
    scale: float,
    group: str,
    layer: int,
    implementation: str,
) -> Tensor:
    """Attention of one prompt; where keys and values have two sizes, the smaller ones are filled up with zeros.

    As in one process: zeros add nothing to a product of query and key, and their columns are left out of the result.
    """
    size = max(q_BAnD.shape[3], v_BGKE.shape[3])
    q, k, v = (x if x.shape[3] == size else pad(x, (0, size - x.shape[3])) for x in (q_BAnD, k_BGKD, v_BGKE))
    out: Tensor = attend(q[0], k[0], v[0], scale, _layer(schedule, group, layer, implementation, q, k))
    return out[..., : v_BGKE.shape[3]]


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
    on, at = unpack_rank(packed), (group, layer, implementation)
    out = _of_one_size(attention.rank_attention, q_BALD, k_BGLD, v_BGLD, on, scale, *at)
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
    on, at = unpack_rank(packed), (group, layer, implementation)
    out = _of_one_size(attention.rank_last_attention, q_BA1D, k_BGLD, v_BGLD, on, scale, *at)
    return out[None].contiguous()


@fake(rank_last_attention)
def _(q_BA1D: Tensor, v_BGLD: Tensor) -> Tensor:
    return q_BA1D.new_empty((*q_BA1D.shape[:3], v_BGLD.shape[3]))


@operator("rank_decode_attention")
def rank_decode_attention(
    q_BATD: Tensor, k_BGND: Tensor, v_BGND: Tensor, scale: float, group: str, layer: int, implementation: str
) -> Tensor:
    """See :func:`segmo.runtime.distributed.attention.rank_decode_attention`; B is 1."""
    schedule = session_of(group).decoding(k_BGND.shape[2], q_BATD.shape[2])
    at = (group, layer, implementation)
    out = _of_one_size(attention.rank_decode_attention, q_BATD, k_BGND, v_BGND, schedule, scale, *at)
    return out[None].contiguous()


@fake(rank_decode_attention)
def _(q_BATD: Tensor, v_BGND: Tensor) -> Tensor:
    return q_BATD.new_empty((*q_BATD.shape[:3], v_BGND.shape[3]))
