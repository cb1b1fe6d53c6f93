"""PyTorch's flash attention on the CPU with its logsumexp, given only what it computes right.

Legend: B batch, A heads, n rows, p keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cpu_flash(
    q_BAnD: Tensor, k_BApD: Tensor, v_BApD: Tensor, scale: float, causal: bool = False, mask_np: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output (B, A, n, D) and logsumexp (B, A, n), of an operator of torch that is not public.

    It misreads queries whose last stride is not 1 (in torch 2.11 keys and values too): wrong numbers without a word.
    Other strides it takes as they are, so heads may be an expanded (stride 0) view.
    """
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *map(_dense_rows, (q_BAnD, k_BApD, v_BApD)), is_causal=causal, attn_mask=mask_np, scale=scale
    )
    return out, logsumexp


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
