"""The performance model counts what a kernel does."""

from __future__ import annotations

import pytest
import torch

from segmo.runtime.attention.tiles import TileSchedule, Tiling, build
from segmo.runtime.kernels import model
from segmo.runtime.kernels.hardware import A100, MACHINES, Machine
from segmo.runtime.schedule import RowSchedule

TILING = Tiling(block_m=64, block_n=32, repeats=2, groups=2, workers=216)


def _tiles(row: RowSchedule, length: int) -> TileSchedule:
    return build([row], length, TILING, torch.device("cpu"))


def test_attention_flops_are_those_of_the_visited_tiles() -> None:
    tiles = _tiles(RowSchedule(0, 0, (64,), 64, ()), 64)
    found = model.segment_attention(A100, tiles, TILING, 1, 64, 128, "bf16")
    # 128 flat rows are two tiles of rows; the first sees keys 0..31, the second 0..63: three tiles of keys,
    # two groups.
    assert found.tiles == 6
    assert found.flops == 6 * 4 * 64 * 32 * 128
    # q and out of 4 heads, k and v of 2, in bf16, and one fp32 logsumexp per query head and token.
    assert found.bytes == 64 * 128 * 2 * (4 + 4 + 2 + 2) + 64 * 4 * 4


def test_segments_are_predicted_to_be_faster() -> None:
    length = 8192
    full = _tiles(RowSchedule(0, 0, (length,), length, ()), length)
    cut = _tiles(RowSchedule(0, 0, tuple(range(1024, length + 1, 1024)), length, ()), length)
    times = [model.segment_attention(A100, tiles, TILING, 1, length, 128, "bf16").seconds for tiles in (full, cut)]
    assert 5 < times[0] / times[1] < 8.5  # 8 segments: an eighth of the pairs, and whole tiles on the diagonal


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda machine: machine.name)
def test_decode_is_bound_by_memory(machine: Machine) -> None:
    found = model.decode(machine, 1, 4, 7, 16384, 128, "bf16", 16)
    assert found.bound == "memory"
    assert found.seconds == found.bytes / machine.bandwidth
    assert found.bytes == pytest.approx(2 * 4 * 16384 * 128 * 2, rel=1e-3)


def test_other_kernels_move_what_they_must() -> None:
    assert model.scan(A100, 1000, 10, 3584, "bf16").bytes == pytest.approx(1000 * 3584 * 2, rel=0.1)
    assert model.compact(A100, 100, 25, 64).bytes == 100 * 4 + 25 * (2 * 64 + 8)
    assert model.merge(A100, 10, 3, 64, "fp32", "bf16").bytes == 10 * (3 * (64 * 4 + 4) + 64 * 2 + 4)


# Clock in MHz, dense FLOPs per clock and multiprocessor in bf16 and in fp32's substitute (TF32 on NVIDIA, fp32 on AMD),
# width of the memory bus in bits and Gbit/s of a pin: NVIDIA's A100 and H100 white papers, published clocks of B200
# (1.86 GHz in the matrix units), AMD's CDNA 3 white paper.
CLOCKED = {
    "A100-SXM-80GB": (1410, 2048, 1024, 5120, 3.186),
    "H100-SXM": (1830, 4096, 2048, 5120, 5.23),
    "B200": (1860, 8192, 4096, 8192, 7.8),
    "MI300X": (2100, 2048, 256, 8192, 5.2),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda machine: machine.name)
def test_peaks_are_those_of_clocks_and_units(machine: Machine) -> None:
    """The data sheets' peaks a second way. A number that counts sparsity would be twice too large."""
    clock, half, single, bits, pin = CLOCKED[machine.name]
    per_flop = machine.processors * clock * 1e6
    assert machine.matrix_flops["bf16"] == machine.matrix_flops["fp16"] == pytest.approx(per_flop * half, rel=0.01)
    passes = 1 if machine.target.startswith("gfx") else 3  # an fp32 product takes three of TF32
    assert machine.matrix_flops["fp32"] * passes == pytest.approx(per_flop * single, rel=0.03)
    assert machine.bandwidth == pytest.approx(bits * pin * 1e9 / 8, rel=0.01)
