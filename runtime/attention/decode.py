"""Attention of one new token over a cache that lies in pieces: split over keys, merged by logsumexp.

Legend: B batch, A query heads, G key/value heads, N keys of a piece, D head size.

Source: Flash-Decoding (Dao et al., 2023). The pieces may be any: layers' caches of sinks, segments and
answer, or one whole cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.errors import KernelError
from segmo.runtime.attention.merge import merge_parts
from segmo.runtime.attention.triton import dense_heads
from segmo.runtime.kernels.configs import decode_spec
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import DecodeSpec, dtype_name


@dataclass(frozen=True)
class Piece:
    """One piece of a cache.

    Attributes:
        k_BGND, v_BGND: keys and values.
        span_B2: first key and end of the keys that count in each batch row, (B, 2) int32 on the keys' device;
            all of them when not given. Padding lies outside.
    """

    k_BGND: Tensor
    v_BGND: Tensor
    span_B2: Tensor | None = None


def _span(piece: Piece) -> Tensor:
    if piece.span_B2 is not None:
        return piece.span_B2
    batch, _, keys, _ = piece.k_BGND.shape
    return torch.tensor([[0, keys]] * batch, dtype=torch.int32, device=piece.k_BGND.device)


def _check(q_BAD: Tensor, pieces: Sequence[Piece], scale: float) -> None:
    if not pieces:
        raise KernelError("decode attention needs at least one piece of cache")
    if scale <= 0:
        raise KernelError(f"the attention scale is {scale}; the kernel's online softmax needs it to be positive")
    batch, heads, head_size = q_BAD.shape
    for piece in pieces:
        shape = piece.k_BGND.shape
        fits = shape[0] == batch and shape[3] == head_size and heads % shape[1] == 0
        if not fits or piece.v_BGND.shape != shape:
            raise KernelError(
                f"a piece with keys {tuple(shape)} and values {tuple(piece.v_BGND.shape)} does not fit "
                f"queries {tuple(q_BAD.shape)}"
            )


def decode_attention(
    q_BAD: Tensor, pieces: Sequence[Piece], scale: float, spec: DecodeSpec | None = None
) -> tuple[Tensor, Tensor]:
    """Attention (B, A, D) of one token per batch row over all keys of all pieces, and its logsumexp (B, A).

    Args:
        q_BAD: queries.
        pieces: the cache; all with the same number of key/value heads.
        scale: of the logits, positive.
        spec: the kernel to run; one for this device when not given.

    Raises:
        KernelError: pieces do not fit the queries, or there is no kernel for the dtype or device.
    """
    _check(q_BAD, pieces, scale)
    batch, heads, head_size = q_BAD.shape
    groups, device = pieces[0].k_BGND.shape[1], q_BAD.device
    spec = spec or decode_spec(architecture(device), head_size, dtype_name(q_BAD.dtype), heads // groups)
    kernels: Any = render(spec).load()
    chunks = [-(-piece.k_BGND.shape[2] // spec.chunk) for piece in pieces]
    parts = torch.empty(sum(chunks), batch, heads, head_size, device=device, dtype=torch.float32)
    parts_lse = torch.empty(sum(chunks), batch, heads, device=device, dtype=torch.float32)
    q_BAD = dense_heads(q_BAD)
    slot = 0
    for piece, count in zip(pieces, chunks, strict=True):
        if count:
            k_BGND, v_BGND = dense_heads(piece.k_BGND), dense_heads(piece.v_BGND)
            kernels.decode_kernel[groups, batch, count](
                q_BAD,
                k_BGND,
                v_BGND,
                parts,
                parts_lse,
                _span(piece),
                *q_BAD.stride()[:2],
                *k_BGND.stride()[:3],
                *v_BGND.stride()[:3],
                slot,
                scale * math.log2(math.e),
                num_warps=kernels.NUM_WARPS,
                num_stages=kernels.NUM_STAGES,
            )
        slot += count
    return merge_parts(parts, parts_lse, q_BAD.dtype)
