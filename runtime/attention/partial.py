"""Attention with its logsumexp over a part of the keys, and the exact merge of such parts.

Legend: G key/value heads, R query heads per key/value head, n rows, p keys, D head size, W parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.runtime.attention.cpu_flash import cpu_flash


def partial_attention(
    q_GRnD: Tensor, k_GpD: Tensor, v_GpD: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Output (G, R, n, D) in the dtype of ``q`` and logsumexp (G, R, n) in fp32, over these keys alone.

    Key/value heads are the batch and the query heads that share one are the heads, so that a key/value head
    is shared by an expanded view and never copied. Without keys the output is 0 and the logsumexp -inf.
    """
    groups, repeats, rows, _ = q_GRnD.shape
    if k_GpD.shape[1] == 0 or rows == 0:
        out = q_GRnD.new_zeros(groups, repeats, rows, v_GpD.shape[2])
        return out, q_GRnD.new_full((groups, repeats, rows), -torch.inf, dtype=torch.float32)
    k_GRpD = k_GpD[:, None].expand(-1, repeats, -1, -1)
    v_GRpD = v_GpD[:, None].expand(-1, repeats, -1, -1)
    if q_GRnD.device.type == "cpu":
        out, logsumexp = cpu_flash(q_GRnD, k_GRpD, v_GRpD, scale, causal)
    elif q_GRnD.dtype in (torch.bfloat16, torch.float16):
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention(
            q_GRnD, k_GRpD, v_GRpD, 0.0, causal, scale=scale
        )[:2]
    else:  # the flash kernel of CUDA takes half precision only
        out, logsumexp = torch.ops.aten._scaled_dot_product_efficient_attention(
            q_GRnD, k_GRpD, v_GRpD, None, True, 0.0, causal, scale=scale
        )[:2]
    return out, logsumexp[..., :rows].float()


def merge_parts(out_WGRnD: Tensor, lse_WGRn: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of W disjoint key sets, in fp32, and its logsumexp.

    Parts without keys have a logsumexp of -inf and weigh nothing; a row without keys in any part is 0.

    Source: the combination of partial softmaxes of FlashAttention (Dao et al., 2022, section 3.1), between
    ranks as in Star Attention (Acharya et al., 2024, section 2.2).
    """
    total = lse_WGRn.logsumexp(0)
    weight_WGRn = (lse_WGRn - total.masked_fill(total == -torch.inf, 0)).exp()
    return (out_WGRnD.float() * weight_WGRn[..., None]).sum(0), total
