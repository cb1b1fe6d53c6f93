"""The reference: a dense boolean mask fed to ``scaled_dot_product_attention``. Slow, quadratic, the contract.

Legend: B batch, A query heads, G key/value heads, K tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.runtime.host import send
from segmo.runtime.schedule import RowSchedule, unpack


def dense_mask(row: RowSchedule, length: int, device: torch.device | None = None, first: int = 0) -> Tensor:
    """True where query i may see key j, (K - first, K) bool, for the queries from ``first`` on.

    ``j <= i and (sink(j) or query(i) or segment(i) == segment(j) or context(j))``, and neither is padding. Text between
    two videos has rows as the query has, and is context as keys.
    """
    key = torch.arange(length, device=device)
    segment = torch.bucketize(key, torch.tensor(row.segment_ends, device=device), right=True)
    sink, query = key < row.sink_end, key >= row.query_start
    for start, end in row.turns:
        query = query | ((key >= start) & (key < end))
    segment = torch.where(sink, -1, segment)
    context = torch.zeros(length, dtype=torch.bool, device=device)
    context[list(row.context)] = True
    valid = (key >= row.start) & (key < row.end)
    rows = slice(first, None)
    causal = key <= key[rows, None]
    same = segment[rows, None] == segment
    visible = causal & (sink | query[rows, None] | same | context)
    return visible & valid & valid[rows, None]


def segment_attention(q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, schedule: Tensor, scale: float) -> Tensor:
    """Segment attention by a dense mask, (B, A, K, D). Rows of padding are zero.

    With fewer queries than keys, the queries are the last ones.
    """
    length, first = k_BGKD.shape[2], k_BGKD.shape[2] - q_BAKD.shape[2]
    # Made on the host, which knows the schedule, and sent: nobody waits for that.
    mask = torch.stack([dense_mask(row, length, first=first) for row in unpack(schedule)])[:, None]
    mask = send(mask, q_BAKD.device)
    out = torch.nn.functional.scaled_dot_product_attention(
        q_BAKD, k_BGKD, v_BGKD, attn_mask=mask, scale=scale, enable_gqa=q_BAKD.shape[1] != k_BGKD.shape[1]
    )
    return out.masked_fill(~mask.any(-1, keepdim=True), 0)
