"""Decode attention over a cache in pieces, in Triton's interpreter, against fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret

from segmo.errors import KernelError
from segmo.runtime.attention.decode import Piece, decode_attention
from segmo.runtime.kernels.specs import HEAD_SIZES, Config, DecodeSpec, dtype_name

LIMIT = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def _expected(q: torch.Tensor, pieces: list[Piece], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    k = torch.cat([piece.k_BGND for piece in pieces], 2).double()
    v = torch.cat([piece.v_BGND for piece in pieces], 2).double()
    valid = []
    for piece in pieces:
        position = torch.arange(piece.k_BGND.shape[2])
        span = piece.span_B2
        if span is None:
            valid.append(torch.ones(q.shape[0], len(position), dtype=torch.bool))
        else:
            valid.append((position >= span[:, :1]) & (position < span[:, 1:]))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    logits = (q.double()[:, :, None] @ k.mT)[:, :, 0] * scale
    logits = logits.masked_fill(~torch.cat(valid, 1)[:, None], -torch.inf)
    return (logits.softmax(-1)[:, :, None] @ v)[:, :, 0], torch.logsumexp(logits, -1)


def _pieces(sizes: list[int], batch: int, groups: int, head_size: int, dtype: torch.dtype) -> list[Piece]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(2, batch, groups, size, head_size, generator=generator).to(dtype) for size in sizes]
    return [Piece(both[0], both[1]) for both in made]


def _check(q: torch.Tensor, pieces: list[Piece], spec: DecodeSpec) -> None:
    out, lse = interpret(decode_attention, q, pieces, 0.1, spec)
    expected, expected_lse = _expected(q, pieces, 0.1)
    assert (out - expected).norm() / expected.norm() < LIMIT[q.dtype]
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=3).filter(any),
    heads=st.sampled_from([(1, 1), (7, 1), (4, 2), (18, 1)]),
    dtype=st.sampled_from(list(LIMIT)),
)
def test_equals_attention_over_all_pieces(sizes: list[int], heads: tuple[int, int], dtype: torch.dtype) -> None:
    query_heads, groups = heads
    q = torch.randn(2, query_heads, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    spec = DecodeSpec(80, dtype_name(dtype), query_heads // groups, Config(32, 16, 4, 2), 32)
    _check(q, _pieces(sizes, 2, groups, 80, dtype), spec)


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_every_head_size(head_size: int) -> None:
    q = torch.randn(1, 4, head_size, generator=torch.Generator().manual_seed(0))
    spec = DecodeSpec(head_size, "fp32", 2, Config(16, 32, 4, 2), 64)
    _check(q, _pieces([100], 1, 2, head_size, torch.float32), spec)


def test_left_padding_does_not_count() -> None:
    piece = _pieces([50], 2, 1, 64, torch.float32)[0]
    piece.k_BGND[0, :, :33] = torch.nan  # what lies in padding must not matter
    piece.v_BGND[0, :, :33] = torch.nan
    padded = Piece(piece.k_BGND, piece.v_BGND, torch.tensor([[33, 50], [0, 50]], dtype=torch.int32))
    q = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(0))
    spec = DecodeSpec(64, "fp32", 2, Config(16, 16, 4, 2), 32)
    out, _ = interpret(decode_attention, q, [padded], 0.1, spec)
    clean = Piece(piece.k_BGND.nan_to_num(0), piece.v_BGND.nan_to_num(0), padded.span_B2)
    torch.testing.assert_close(out.double(), _expected(q, [clean], 0.1)[0], rtol=1e-5, atol=1e-6)


def test_pieces_must_fit_the_queries() -> None:
    q = torch.zeros(2, 4, 64)
    with pytest.raises(KernelError, match="at least one piece"):
        decode_attention(q, [], 0.1)
    with pytest.raises(KernelError, match="does not fit queries"):
        decode_attention(q, _pieces([8], 2, 3, 64, torch.float32), 0.1)
    with pytest.raises(KernelError, match="positive"):
        decode_attention(q, _pieces([8], 2, 2, 64, torch.float32), 0.0)
