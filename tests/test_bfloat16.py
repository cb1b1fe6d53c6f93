"""The demo's dtype follows the processor."""

from __future__ import annotations

import pytest
import torch

from segmo.bfloat16 import multiplies_bfloat16
from segmo.demo.model import build_model
from segmo.demo.processor import build_processor


@pytest.mark.parametrize(("instruction", "dtype"), [("amx_bf16", torch.bfloat16), ("avx2", torch.float32)])
def test_bfloat16_only_where_the_processor_multiplies_it(
    instruction: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True, "avx512_bf16": False})
    assert multiplies_bfloat16() == (dtype == torch.bfloat16)
    assert next(build_model(build_processor()).parameters()).dtype == dtype
