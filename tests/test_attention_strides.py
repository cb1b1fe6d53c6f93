"""Attention on the CPU of tensors whose last stride is not 1, which torch's operator computes wrongly.

Legend: B batch, A query heads, G key/value heads, K tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segmo.runtime.attention import flash, partial, reference
from segmo.runtime.schedule import RowSchedule, pack

OPERATOR = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def misreading(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The operator with keys and values read as it reads queries: as if a row's numbers lay side by side."""

    def read(x: Tensor) -> Tensor:
        flat = torch.cat([x.contiguous().flatten(), torch.zeros(x.shape[-1])])
        return x if x.stride(-1) == 1 else flat.as_strided(x.shape, x.contiguous().stride(), 1)

    return OPERATOR(read(query), read(key), read(value), *args, **kwargs)


def strided(*shape: int) -> Tensor:
    """Random numbers with tokens, not head size, as the last dimension in memory."""
    return torch.randn(*shape).mT.contiguous().mT


@pytest.fixture(params=["as it is here", "all misread"], autouse=True)
def operator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "all misread":
        monkeypatch.setattr(torch.ops.aten, OPERATOR.__name__, misreading)


def test_segments() -> None:
    row = RowSchedule(0, 3, (12, 90), 96, (5,))
    q, k, v = strided(1, 4, 96, 16), strided(1, 2, 96, 16), strided(1, 2, 96, 16)
    assert q.stride(-1) != 1
    out = flash.segment_attention(q, k, v, pack([row]), 0.25)
    torch.testing.assert_close(out, reference.segment_attention(q, k, v, pack([row]), 0.25))


def test_a_part_of_the_keys() -> None:
    q, k, v = strided(2, 3, 20, 16), strided(2, 30, 16), strided(2, 30, 16)
    out, logsumexp = partial.partial_attention(q, k, v, 0.25, False)
    scores = 0.25 * q @ k[:, None].mT
    torch.testing.assert_close(out, scores.softmax(-1) @ v[:, None])
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1))
