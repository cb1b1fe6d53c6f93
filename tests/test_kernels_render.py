"""Generated source: golden files, and that the same spec is the same text in the same file.

``UPDATE_GOLDEN=1 pytest tests/test_kernels_render.py`` writes the golden files anew; read the diff before you
commit it.
"""

from __future__ import annotations

import ast
import dataclasses
import os
from pathlib import Path

import pytest

from segmo.errors import KernelError
from segmo.runtime.kernels import configs
from segmo.runtime.kernels.inventory import compact_spec
from segmo.runtime.kernels.render import Spec, render
from segmo.runtime.kernels.specs import HEAD_SIZES, MergeSpec, dtype_name, head_parts

GOLDEN = Path(__file__).parent / "golden"
SPECS: dict[str, Spec] = {
    "segment_attention_sm_80_d80_bf16": configs.attention_spec("sm_80", 80, "bf16", 7, (320, 320)),
    "segment_attention_sm_90_d128_fp16": configs.attention_spec("sm_90", 128, "fp16", 4),
    "segment_attention_gfx942_d64_fp32": configs.attention_spec("gfx942", 64, "fp32", 1),
    "decode_sm_90_d128_bf16": configs.decode_spec("sm_90", 128, "bf16", 7),
    "question_sm_100_d96_bf16": configs.question_spec("sm_100", 96, "bf16", 7),
    "merge_d64_bf16": MergeSpec(64, "fp32", "bf16"),
    "scan_h3584_bf16": configs.scan_spec("sm_90", 3584, "bf16"),
    "compact_bf16": compact_spec("bf16"),
}


@pytest.mark.parametrize("name", SPECS)
def test_golden_source(name: str) -> None:
    source = render(SPECS[name]).source
    ast.parse(source)
    golden = GOLDEN / f"{name}.py.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(source)
    assert source == golden.read_text()


def test_every_golden_file_has_its_spec() -> None:
    assert {path.name.removesuffix(".py.txt") for path in GOLDEN.iterdir()} == set(SPECS)


def test_source_is_loaded_from_a_file_that_holds_it() -> None:
    kernel = render(SPECS["merge_d64_bf16"])
    module = kernel.load()
    assert module.__file__ is not None
    assert Path(module.__file__).read_text() == kernel.source
    assert kernel.load() is module


def test_the_hash_follows_the_source() -> None:
    spec = configs.attention_spec("sm_90", 64, "bf16", 2)
    assert render(spec).hash == render(dataclasses.replace(spec)).hash
    other = dataclasses.replace(spec, config=dataclasses.replace(spec.config, stages=1))
    assert render(other).hash != render(spec).hash


@pytest.mark.parametrize("head_size", [*HEAD_SIZES, 16, 48, 112, 240])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_parts_cover_the_head_once(head_size: int, dtype: str) -> None:
    parts = head_parts(head_size, dtype)
    assert [offset for offset, _ in parts] == [sum(width for _, width in parts[:i]) for i in range(len(parts))]
    assert sum(width for _, width in parts) == head_size
    assert all(width & (width - 1) == 0 and width >= 16 for _, width in parts)


@pytest.mark.parametrize("head_size", [80, 96])
def test_all_parts_of_the_values_are_loaded_before_the_first_product(head_size: int) -> None:
    # The other order was measured to be wrong on Hopper, which neither the interpreter nor the compiler shows.
    lines = render(configs.attention_spec("sm_90", head_size, "bf16", 7)).source.splitlines()
    steps = [line.split(" = ")[0].strip() for line in lines if "_ND = tl.load" in line or " = tl.dot" in line]
    step = ["k0_ND", "k1_ND", "v0_ND", "v1_ND", "logits_MN", "logits_MN", "out0_MD", "out1_MD"]
    assert steps == 3 * step  # the prefix, whole tiles, and the edge


def test_head_sizes_and_dtypes_without_a_kernel() -> None:
    import torch

    with pytest.raises(KernelError, match="not a multiple of 16"):
        head_parts(72)
    with pytest.raises(KernelError, match="no generated kernel"):
        dtype_name(torch.float64)
