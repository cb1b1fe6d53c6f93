"""The logsumexp merge, in Triton's interpreter: attention over parts of the keys, merged, is attention over
all of them.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret

from segmo.errors import KernelError
from segmo.runtime.attention.merge import merge_parts


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = q.double() @ k.double().mT
    if k.shape[-2] == 0:
        return torch.zeros(q.shape, dtype=torch.double), torch.full(q.shape[:-1], -torch.inf).double()
    return logits.softmax(-1) @ v.double(), torch.logsumexp(logits, -1)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    rows=st.integers(1, 40),
    head_size=st.sampled_from([16, 64, 80]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_parts_merged_are_the_whole(sizes: list[int], rows: int, head_size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    q, k, v = (torch.randn(2, 3, n, head_size, generator=generator) * 0.5 for n in (rows, sum(sizes), sum(sizes)))
    expected, expected_lse = _attention(q, k, v)
    parts = [_attention(q, a, b) for a, b in zip(k.split(sizes, 2), v.split(sizes, 2), strict=True)]
    out = torch.stack([part[0] for part in parts]).to(dtype)
    lse = torch.stack([part[1] for part in parts]).float()
    merged, merged_lse = interpret(merge_parts, out, lse)
    assert merged.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 8e-3
    assert (merged - expected).norm() / expected.norm() < limit
    torch.testing.assert_close(merged_lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_a_row_without_keys_stays_empty() -> None:
    out, lse = interpret(merge_parts, torch.zeros(2, 3, 64), torch.full((2, 3), -torch.inf), torch.float16)
    assert torch.equal(out, torch.zeros(3, 64, dtype=torch.float16))
    assert (lse == -torch.inf).all()


def test_no_rows_is_no_launch() -> None:
    out, lse = interpret(merge_parts, torch.zeros(2, 0, 64), torch.zeros(2, 0))
    assert out.shape == (0, 64)
    assert lse.shape == (0,)


def test_shapes_must_belong_together() -> None:
    with pytest.raises(KernelError, match="need fp32 logsumexps"):
        merge_parts(torch.zeros(2, 3, 64), torch.zeros(2, 4))
