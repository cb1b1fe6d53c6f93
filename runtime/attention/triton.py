"""Segment attention by a generated Triton kernel: one launch for all segments of all heads.

Legend: B batch, A query heads, G key/value heads, R = A / G query heads per key/value head, K tokens, D head
size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from segmo.errors import KernelError
from segmo.runtime.attention.tiles import TileSchedule, Tiling, tile_schedule
from segmo.runtime.kernels.device import architecture, workers
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import AttentionSpec, dtype_name
from segmo.runtime.kernels.tuned import tuned_attention_spec


def spec_for(q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor) -> AttentionSpec:
    """The spec that fits these tensors and the device that they are on.

    Raises:
        KernelError: there is no kernel for the dtype, the head size, or the ratio of the heads.
    """
    heads, groups = q_BAKD.shape[1], k_BGKD.shape[1]
    if heads % groups:
        raise KernelError(f"{heads} query heads are not a multiple of {groups} key/value heads")
    return tuned_attention_spec(
        architecture(q_BAKD.device),
        q_BAKD.device,
        q_BAKD.shape[3],
        dtype_name(q_BAKD.dtype),
        heads // groups,
        (k_BGKD.stride(2), v_BGKD.stride(2)),
    )


def _check(q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, scale: float) -> None:
    if scale <= 0:
        raise KernelError(f"the attention scale is {scale}; the kernel's online softmax needs it to be positive")
    if v_BGKD.shape != k_BGKD.shape:
        raise KernelError(f"keys {tuple(k_BGKD.shape)} and values {tuple(v_BGKD.shape)} must have the same shape")
    if len({q_BAKD.dtype, k_BGKD.dtype, v_BGKD.dtype}) > 1:
        raise KernelError("queries, keys and values must have the same dtype")


def dense_heads(x_BHND: Tensor) -> Tensor:
    """The tensor itself if the values of a head lie side by side, otherwise a copy for which that is so."""
    return x_BHND if x_BHND.stride(-1) == 1 else x_BHND.contiguous()


def launch(
    q_BAKD: Tensor,
    k_BGKD: Tensor,
    v_BGKD: Tensor,
    tiles: TileSchedule,
    spec: AttentionSpec,
    scale: float,
    out_BAKD: Tensor,
    lse_BAK: Tensor,
) -> None:
    """Runs the kernels of ``spec``; writes the output and its logsumexp where ``tiles`` has rows."""
    if tiles.items.shape[0] == 0:
        return
    kernels: Any = render(spec).load()
    groups, length = k_BGKD.shape[1], q_BAKD.shape[2]
    slots = (tiles.slots * groups, spec.config.block_m)
    split_out = torch.empty(*slots, spec.head_size, device=q_BAKD.device, dtype=torch.float32)
    split_lse = torch.empty(slots, device=q_BAKD.device, dtype=torch.float32)
    options = {"num_warps": kernels.NUM_WARPS, "num_stages": kernels.NUM_STAGES}
    kernels.segment_attention_kernel[groups, tiles.items.shape[0]](
        q_BAKD,
        k_BGKD,
        v_BGKD,
        out_BAKD,
        lse_BAK,
        split_out,
        split_lse,
        tiles.items,
        tiles.prefix,
        *q_BAKD.stride()[:3],
        *k_BGKD.stride()[:2],
        *v_BGKD.stride()[:2],
        *out_BAKD.stride()[:3],
        length,
        scale * math.log2(math.e),
        **options,
    )
    if tiles.merges.shape[0]:
        kernels.merge_splits_kernel[groups, tiles.merges.shape[0], kernels.BLOCK_M // kernels.MERGE_M](
            split_out, split_lse, tiles.merges, out_BAKD, lse_BAK, *out_BAKD.stride()[:3], length, **options
        )


def segment_attention_lse(
    q_BAKD: Tensor,
    k_BGKD: Tensor,
    v_BGKD: Tensor,
    schedule: Tensor,
    scale: float,
    spec: AttentionSpec | None = None,
) -> tuple[Tensor, Tensor]:
    """Segment attention (B, A, K, D) and its logsumexp (B, A, K) fp32. Rows of padding are 0 and -inf.

    Args:
        q_BAKD, k_BGKD, v_BGKD: one dtype, on one device.
        schedule: from :func:`segmo.runtime.schedule.attention_schedule`.
        scale: of the logits, positive.
        spec: the kernel to run; :func:`spec_for` these tensors when not given.

    Raises:
        KernelError: there is no kernel for this dtype, head size or scale.
    """
    _check(q_BAKD, k_BGKD, v_BGKD, scale)
    q_BAKD, k_BGKD, v_BGKD = dense_heads(q_BAKD), dense_heads(k_BGKD), dense_heads(v_BGKD)
    spec = spec or spec_for(q_BAKD, k_BGKD, v_BGKD)
    batch, heads, length, head_size = q_BAKD.shape
    groups, device = k_BGKD.shape[1], q_BAKD.device
    tiling = Tiling(spec.config.block_m, spec.config.block_n, spec.repeats, groups, workers(device))
    tiles = tile_schedule(schedule, length, tiling, device)
    # Laid out as (B, K, A, D): the model transposes to that next, and then has nothing to copy.
    out_BAKD = q_BAKD.new_empty(batch, length, heads, head_size).transpose(1, 2)
    lse_BAK = torch.empty(batch, heads, length, device=device, dtype=torch.float32)
    if tiles.padded:
        out_BAKD.zero_()
        lse_BAK.fill_(-torch.inf)
    launch(q_BAKD, k_BGKD, v_BGKD, tiles, spec, scale, out_BAKD, lse_BAK)
    return out_BAKD, lse_BAK


def segment_attention(q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, schedule: Tensor, scale: float) -> Tensor:
    """Segment attention by one generated Triton kernel, (B, A, K, D). Rows of padding are zero."""
    return segment_attention_lse(q_BAKD, k_BGKD, v_BGKD, schedule, scale)[0]
