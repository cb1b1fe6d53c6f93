"""Exact merges of attention over disjoint sets of keys, by logsumexp, in a generated Triton kernel.

Legend: P parts, B batch, A query heads, K tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segmo.errors import KernelError
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import MergeSpec, dtype_name


def merge_parts(out_PBAKD: Tensor, lse_PBAK: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Attention over the union of the parts' keys, and its logsumexp.

    What ring attention (Liu et al., 2023), Star Attention and Flash-Decoding do after each part; here any
    number of parts in one launch.

    Args:
        out_PBAKD: each part's output. Any shape between the first and the last dimension will do.
        lse_PBAK: each part's logsumexp, fp32; -inf where a part had no key for a row.
        dtype: of the result; that of the parts when not given.

    Raises:
        KernelError: the shapes do not belong together, or there is no kernel for the dtype or device.
    """
    if out_PBAKD.shape[:-1] != lse_PBAK.shape or lse_PBAK.dtype != torch.float32:
        raise KernelError(
            f"partial results {tuple(out_PBAKD.shape)} need fp32 logsumexps of shape "
            f"{tuple(out_PBAKD.shape[:-1])}, not {lse_PBAK.dtype} {tuple(lse_PBAK.shape)}"
        )
    architecture(out_PBAKD.device)  # refuses devices that cannot run the kernel
    out_PBAKD, lse_PBAK = out_PBAKD.contiguous(), lse_PBAK.contiguous()
    dtype = dtype or out_PBAKD.dtype
    head_size = out_PBAKD.shape[-1]
    merged = torch.empty(out_PBAKD.shape[1:], dtype=dtype, device=out_PBAKD.device)
    lse = torch.empty(lse_PBAK.shape[1:], device=out_PBAKD.device, dtype=torch.float32)
    if lse.numel() == 0:
        return merged, lse
    spec = MergeSpec(head_size, dtype_name(out_PBAKD.dtype), dtype_name(dtype))
    kernels: Any = render(spec).load()
    kernels.merge_kernel[(-(-lse.numel() // kernels.BLOCK_M),)](
        out_PBAKD,
        lse_PBAK,
        merged,
        lse,
        out_PBAKD.stride(0),
        lse_PBAK.stride(0),
        lse.numel(),
        out_PBAKD.shape[0],
        num_warps=kernels.NUM_WARPS,
        num_stages=kernels.NUM_STAGES,
    )
    return merged, lse
