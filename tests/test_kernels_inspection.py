"""The default configs, compiled for GPUs that are not here: no spills, the right matrix instruction,
    asynchronous copies.

A representative part; ``segmo kernels`` compiles everything and exits with 1 if a default config is not in
order.
"""

from __future__ import annotations

import os

import pytest

from segmo.errors import KernelError
from segmo.runtime.kernels import loops
from segmo.runtime.kernels.configs import attention_config, family
from segmo.runtime.kernels.hardware import A100, H100, MI300X, machine
from segmo.runtime.kernels.inspection import Inspection
from segmo.runtime.kernels.inventory import Entry, compile_and_inspect, entries, expected_matrix, problems
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import DTYPES
from segmo.runtime.kernels.targets import TARGETS, compile_entry, gpu_target, specialized

COMPILED = [
    *((target, "segment_attention_kernel", 128, "bf16") for target in TARGETS),
    ("sm_80", "segment_attention_kernel", 80, "bf16"),
    ("sm_90", "segment_attention_kernel", 64, "fp16"),
    ("sm_80", "segment_attention_kernel", 64, "fp32"),
    ("sm_100", "decode_kernel", 80, "fp32"),
    ("sm_100", "question_lse_kernel", 256, "fp32"),
    ("sm_90", "scan_kernel", None, "fp32"),
    ("sm_80", "decode_kernel", 128, "bf16"),
    ("sm_90", "question_lse_kernel", 128, "bf16"),
    ("sm_90", "key_scores_kernel", 128, "bf16"),
    ("sm_90", "merge_splits_kernel", 128, "bf16"),
    ("sm_90", "merge_kernel", 128, "bf16"),
    ("sm_90", "scan_kernel", None, "bf16"),
    ("sm_90", "finish_scan_kernel", None, "bf16"),
    ("sm_90", "compact_kernel", None, "bf16"),
]


def _entry(target: str, function: str, head_size: int | None, dtype: str) -> Entry:
    (found,) = (
        entry
        for entry in entries(target)
        if (entry.function, entry.head_size, entry.dtype) == (function, head_size, dtype)
    )
    return found


ALL = os.environ.get("SEGMO_ALL_KERNELS") == "1"


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="half an hour of a core the first time: SEGMO_ALL_KERNELS=1 compiles every kernel")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_default_config(target: str, dtype: str) -> None:
    wrong = {
        (entry.function, entry.head_size): found
        for entry in entries(target)
        if entry.dtype == dtype and (found := problems(entry, target, compile_and_inspect(entry, target)))
    }
    assert wrong == {}


# Compiled with all integer arguments equal to one, which Triton makes constants of: a batch of one, a stride of one.
@pytest.mark.parametrize("function", sorted({entry.function for entry in entries("sm_80")}))
def test_arguments_that_are_one_compile(function: str) -> None:
    entry = _entry("sm_80", function, None if "scan" in function or "compact" in function else 64, "bf16")
    kernel = render(entry.spec)
    ones = specialized(kernel.load().SIGNATURES[function])
    assert ones
    assert compile_entry(kernel, function, "sm_80", ones).code


@pytest.mark.slow
@pytest.mark.parametrize(("target", "function", "head_size", "dtype"), COMPILED)
def test_default_configs(target: str, function: str, head_size: int | None, dtype: str) -> None:
    entry = _entry(target, function, head_size, dtype)
    found = compile_and_inspect(entry, target)
    assert problems(entry, target, found) == []
    assert 0 < found.registers <= 512
    assert bool(found.loops) == (expected_matrix(entry, target) is not None)


def test_problems_are_named() -> None:
    entry = _entry("sm_90", "segment_attention_kernel", 128, "bf16")
    bad = Inspection(255, 16, 3, 1024, 0, ("mma.sync",), 0, (), 100)
    assert problems(entry, "sm_90", bad) == [
        "spills (16 bytes, 3 instructions)",
        "uses mma.sync, not wgmma",
        "does not fit a multiprocessor",
        "copies nothing asynchronously",
    ]


SASS = """
.L_x_1:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
.L_x_2:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/              @!P0 FADD R1, R2, R3 ;
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0050*/               @P0 BRA `(.L_x_2) ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   STL [R1], R2 ;
        /*0080*/                   BRA `(.L_x_3);
"""
GCN = """
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\tv_exp_f32_e32 v1, v2
\ts_cbranch_scc1 .LBB0_1
"""


def test_loops_are_the_innermost_with_matrix_instructions() -> None:
    assert loops.matrix_loops(SASS) == [loops.Loop(4, 2)]
    assert loops.matrix_loops(SASS)[0].ratio == 2
    assert loops.matrix_loops(GCN) == [loops.Loop(3, 1)]
    lines = loops.instructions(SASS)
    assert loops.count(lines, loops.SPILL) == 1
    assert loops.count(lines, loops.ASYNC_COPY) == 1
    assert [loops.matrix_kind(line) for line in lines].count("mma.sync") == 2


def test_occupancy() -> None:
    assert A100.occupancy(registers=128, shared=0, warps=4) == 4  # 65536 / (128 * 128)
    assert A100.occupancy(registers=32, shared=80 * 1024, warps=4) == 2  # 164 KiB / 81 KiB
    assert A100.occupancy(registers=16, shared=0, warps=8) == 8  # 64 warps
    assert H100.occupancy(registers=255, shared=229376, warps=8) == 1
    assert MI300X.occupancy(registers=256, shared=32768, warps=4) == 2  # two waves per SIMD, 64 KiB
    with pytest.raises(KernelError, match="no data sheet for sm_70"):
        machine("sm_70")


def test_architectures_map_to_families() -> None:
    expected = {"sm_80": "sm_80", "sm_86": "sm_80", "sm_89": "sm_80", "sm_120": "sm_80", "sm_90": "sm_90"}
    expected |= {"sm_100": "sm_100", "sm_103": "sm_100", "gfx942": "gfx942", "gfx950": "gfx942"}
    assert {name: family(name) for name in expected} == expected


@pytest.mark.parametrize("head_size", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_configs_fit_a_small_shared_memory(head_size: int, dtype: str) -> None:
    """The consumer cards have 99 KiB for a program where the data centre ones have 163."""
    config = attention_config("sm_89", head_size, dtype)
    size = 4 if dtype == "fp32" else 2
    assert (config.block_m + 2 * config.stages * config.block_n) * head_size * size <= 99 * 1024


def test_targets() -> None:
    assert (gpu_target("sm_90").backend, gpu_target("sm_90").arch) == ("cuda", 90)
    assert (gpu_target("gfx942").backend, gpu_target("gfx942").warp_size) == ("hip", 64)
    with pytest.raises(KernelError, match="unknown target"):
        gpu_target("h100")
