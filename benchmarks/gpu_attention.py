"""Segment attention on the device: tuned tiles, and times beside SDPA's flash attention and FlexAttention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from gpu_checks import LIMIT, example_row, qkv
from gpu_place import Place, relative_error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from segmo.errors import KernelError
from segmo.runtime.attention import reference, triton
from segmo.runtime.attention.tiles import Tiling, tile_schedule
from segmo.runtime.kernels.configs import attention_spec
from segmo.runtime.kernels.device import architecture, workers
from segmo.runtime.kernels.specs import AttentionSpec, Config, dtype_name
from segmo.runtime.kernels.tuned import candidates, tune
from segmo.runtime.schedule import RowSchedule, pack


@dataclasses.dataclass(frozen=True)
class Heads:
    """A model's attention: query heads, key/value heads, head size, and layers of a prefill."""

    heads: int
    groups: int
    head_size: int
    layers: int

    @property
    def repeats(self) -> int:
        return self.heads // self.groups

    def qkv(self, place: Place, length: int, dtype: torch.dtype) -> list[Tensor]:
        return qkv(place, length, self.head_size, dtype, self.heads, self.groups)


def tune_attention(
    place: Place, heads: Heads, dtype: torch.dtype, length: int, most: int | None = None
) -> dict[str, Any]:
    """Times the candidate tiles on one layer of a long prompt; keeps the fastest on disk.

    Args:
        most: candidates to time, the default ones first; all when not given.
    """
    q, k, v = heads.qkv(place, length, dtype)
    target, name = architecture(place.device), dtype_name(dtype)
    default = attention_spec(target, heads.head_size, name, heads.repeats)
    row = example_row(length)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=place.device)
    check = checker(place, heads, dtype)

    def measure(spec: AttentionSpec) -> float:
        laid_out = dataclasses.replace(spec, key_stride=k.stride(2), value_stride=v.stride(2))
        check(laid_out)
        tiling = _tiling(spec.config, heads, place)
        tiles = tile_schedule(pack([row]), length, tiling, place.device)
        scale = heads.head_size**-0.5
        return place.seconds(lambda: triton.launch(q, k, v, tiles, laid_out, scale, out, lse))

    best = tune(place.name, default, candidates(target, heads.head_size, name)[:most], measure)
    facts = {"head_size": heads.head_size, "dtype": name}
    return {**facts, "default": dataclasses.asdict(default.config), "tuned": dataclasses.asdict(best)}


def checker(place: Place, heads: Heads, dtype: torch.dtype, length: int = 700) -> Callable[[AttentionSpec], None]:
    """Raises KernelError for a spec, with the strides of these heads, whose output is not the reference's in fp64."""
    q, k, v = heads.qkv(place, length, dtype)
    row, scale = pack([example_row(length, 3)]), heads.head_size**-0.5
    expected = reference.segment_attention(q.double(), k.double(), v.double(), row, scale)

    def check(spec: AttentionSpec) -> None:
        error = relative_error(triton.segment_attention_lse(q, k, v, row, scale, spec)[0], expected)
        if not error < LIMIT[dtype]:
            raise KernelError(f"{spec.config} is wrong on {place.name}: relative error {error:.2g}")

    return check


def _tiling(config: Config, heads: Heads, place: Place) -> Tiling:
    return Tiling(config.block_m, config.block_n, heads.repeats, heads.groups, workers(place.device))


def flex(place: Place, row: RowSchedule, length: int) -> Callable[..., Tensor]:
    """FlexAttention with SegMo's mask as its block mask; compiled on a GPU."""
    segment = torch.full((length,), -2, device=place.device)
    start = row.sink_end
    segment[:start] = -1
    for index, end in enumerate(row.segment_ends):
        segment[start:end] = index
        start = end
    context = torch.zeros(length, dtype=torch.bool, device=place.device)
    context[list(row.context)] = True

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((segment[j] == -1) | (segment[i] == -2) | (segment[i] == segment[j]) | context[j])

    mask = create_block_mask(visible, None, None, length, length, device=place.device)
    run = torch.compile(flex_attention, dynamic=False) if place.on_gpu else flex_attention
    return lambda q, k, v: run(q, k, v, block_mask=mask, enable_gqa=True)


def time_attention(place: Place, heads: Heads, length: int, dtype: torch.dtype) -> dict[str, Any]:
    """One layer, and all layers of a prefill with one tile schedule, in seconds."""
    q, k, v = heads.qkv(place, length, dtype)
    row = example_row(length)
    schedule, scale = pack([row]), heads.head_size**-0.5
    masked = flex(place, row, length)
    wide_k, wide_v = (x.repeat_interleave(heads.repeats, 1) for x in (k, v))

    def full() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, wide_k, wide_v, is_causal=True)

    def ours() -> Tensor:
        return triton.segment_attention(q, k, v, schedule, scale)

    layers = range(heads.layers)
    return {
        "tokens": length,
        "head_size": heads.head_size,
        "dtype": dtype_name(dtype),
        "differs_from_flex": relative_error(ours(), masked(q, k, v)),
        "full": place.seconds(full),
        "flex": place.seconds(lambda: masked(q, k, v)),
        "segmo": place.seconds(ours),
        "layers": heads.layers,
        "full_layers": place.seconds(lambda: [full() for _ in layers]),
        "flex_layers": place.seconds(lambda: [masked(q, k, v) for _ in layers]),
        "segmo_layers": place.seconds(lambda: [ours() for _ in layers]),
    }
