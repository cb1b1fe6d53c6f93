"""Segment attention by the generated kernel, in Triton's interpreter, against an fp64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret
from layouts import rows

from segmo.errors import KernelError
from segmo.runtime.attention import reference
from segmo.runtime.attention.tiles import TileSchedule, Tiling, build, tile_schedule
from segmo.runtime.attention.triton import launch, segment_attention, segment_attention_lse
from segmo.runtime.kernels.specs import HEAD_SIZES, AttentionSpec, Config, dtype_name
from segmo.runtime.schedule import RowSchedule, pack

# ||out - reference|| / ||reference||. Weights are rounded to the dtype before they meet the values, and so is
# the output.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def _inputs(
    batch: int, heads: int, groups: int, length: int, head_size: int, dtype: torch.dtype, seed: int = 0
) -> list[torch.Tensor]:
    """q, k and v as a model makes them: (B, K, heads, D) in memory."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, length, count, head_size, generator=generator).to(dtype).transpose(1, 2)
        for count in (heads, groups, groups)
    ]


def _reference_lse(q: torch.Tensor, k: torch.Tensor, schedule: list[RowSchedule], scale: float) -> torch.Tensor:
    mask = torch.stack([reference.dense_mask(row, q.shape[2]) for row in schedule])[:, None]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = (q.double() @ k.double().transpose(2, 3) * scale).masked_fill(~mask, -torch.inf)
    return torch.logsumexp(logits, dim=-1)


def _poisoned(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tiles: TileSchedule, spec: AttentionSpec, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the kernels into outputs full of NaN. In the interpreter."""
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
    launch(q, k, v, tiles, spec, scale, out, lse)
    return out, lse


def _check(
    schedule: list[RowSchedule],
    heads: int,
    groups: int,
    head_size: int,
    dtype: torch.dtype,
    config: Config,
    length: int,
) -> None:
    scale = head_size**-0.5
    q, k, v = _inputs(len(schedule), heads, groups, length, head_size, dtype)
    spec = AttentionSpec(head_size, dtype_name(dtype), heads // groups, config, k.stride(2), v.stride(2))
    tiling = Tiling(config.block_m, config.block_n, spec.repeats, groups, workers=8)
    tiles = build(schedule, length, tiling, q.device)
    out, lse = interpret(_poisoned, q, k, v, tiles, spec, scale)
    packed = pack(schedule)
    expected = reference.segment_attention(q.double(), k.double(), v.double(), packed, scale)
    expected_lse = _reference_lse(q, k, schedule, scale)
    for index, row in enumerate(schedule):  # padding was not written
        assert out[index, :, : row.start].isnan().all()
        assert out[index, :, row.end :].isnan().all()
        inside = slice(row.start, row.end)
        error = (out[index, :, inside] - expected[index, :, inside]).norm() / expected[index, :, inside].norm()
        assert error < TOLERANCE[dtype]
        torch.testing.assert_close(lse[index, :, inside].double(), expected_lse[index, :, inside], rtol=1e-5, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_equals_the_reference_on_random_layouts(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 150), "length")
    schedule = data.draw(st.lists(rows(length), min_size=1, max_size=2), "schedule")
    repeats, groups = data.draw(st.sampled_from([(1, 2), (2, 1), (3, 1), (7, 1), (4, 2)]), "heads")
    head_size = data.draw(st.sampled_from([64, 80]), "head size")
    dtype = data.draw(st.sampled_from(list(TOLERANCE)), "dtype")
    _check(schedule, repeats * groups, groups, head_size, dtype, Config(32, 16, 4, 2), length)


LAYOUT = [RowSchedule(2, 7, (40, 41, 41, 90), 100, (10, 11, 12, 50)), RowSchedule(0, 0, (104,), 104, ())]


@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_head_size_and_dtype(head_size: int, dtype: torch.dtype) -> None:
    _check(LAYOUT, 4, 2, head_size, dtype, Config(64, 32, 4, 2), 104)


def test_long_tiles_are_split_and_merged() -> None:
    """A short question over a long video: few rows, many keys."""
    schedule = [RowSchedule(0, 4, (300, 600), 605, (4, 5, 6))]
    tiles = build(schedule, 605, Tiling(16, 16, 1, 1, workers=64), torch.device("cpu"))
    assert tiles.merges.shape[0] > 0
    _check(schedule, 1, 1, 64, torch.float32, Config(16, 16, 4, 2), 605)


def test_all_context_is_full_attention() -> None:
    schedule = [RowSchedule(0, 3, (30, 60), 70, tuple(range(3, 60)))]
    q, k, v = _inputs(1, 2, 1, 70, 64, torch.float32)
    out = interpret(segment_attention, q, k, v, pack(schedule), 0.125)
    full = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125, enable_gqa=True)
    torch.testing.assert_close(out, full)


def test_padding_is_zero_and_its_logsumexp_minus_infinity() -> None:
    q, k, v = _inputs(1, 1, 1, 40, 64, torch.float32)
    out, lse = interpret(segment_attention_lse, q, k, v, pack([RowSchedule(5, 7, (20, 30), 38, ())]), 0.125)
    assert (out[:, :, :5] == 0).all()
    assert (out[:, :, 38:] == 0).all()
    assert (lse[:, :, :5] == -torch.inf).all()
    assert lse[:, :, 5:38].isfinite().all()


def test_values_of_a_head_that_do_not_lie_side_by_side() -> None:
    schedule = pack([RowSchedule(0, 3, (30,), 40, ())])
    q, k, v = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in _inputs(1, 2, 1, 40, 64, torch.float32))
    assert q.stride(-1) != 1
    out = interpret(segment_attention, q, k, v, schedule, 0.125)
    torch.testing.assert_close(out, reference.segment_attention(q, k, v, schedule, 0.125))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": -1.0}, "positive"),
        ({"dtype": torch.float64}, "no generated kernel"),
        ({"head_size": 72}, "multiple of 16"),
        ({"heads": 3}, "multiple of 2"),
    ],
)
def test_what_has_no_kernel_is_an_error(change: dict[str, object], message: str) -> None:
    values = {"scale": 0.125, "dtype": torch.float32, "head_size": 64, "heads": 2, **change}
    q, k, v = _inputs(1, int(values["heads"]), 2, 8, int(values["head_size"]), values["dtype"])  # type: ignore[call-overload, arg-type]
    with pytest.raises(KernelError, match=message):
        interpret(segment_attention, q, k, v, pack([RowSchedule(0, 0, (8,), 8, ())]), values["scale"])


def test_a_cpu_without_the_interpreter_is_an_error() -> None:
    q, k, v = _inputs(1, 2, 2, 8, 64, torch.float32)
    with pytest.raises(KernelError, match="need a CUDA or ROCm device"):
        segment_attention(q, k, v, pack([RowSchedule(0, 0, (8,), 8, ())]), 0.125)


def test_layers_share_one_tile_schedule() -> None:
    tiling = Tiling(64, 32, 2, 2, 8)
    first = tile_schedule(pack(LAYOUT), 104, tiling, torch.device("cpu"))
    assert tile_schedule(pack(LAYOUT), 104, tiling, torch.device("cpu")) is first
