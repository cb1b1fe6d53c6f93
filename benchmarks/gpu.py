"""Everything about the generated kernels that needs a GPU: numerics on the device, tuning, and times.

    python benchmarks/gpu.py [--out out/gpu] [--minutes 10]

Checks every kernel against a reference, tunes segment attention's tiles (the result is kept on disk and used
from then on), and times segment attention against SDPA's flash attention over the whole prompt, FlexAttention
with the same mask, and all attention layers of a prefill. Writes one JSON and prints one table. Without a GPU
it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from segmo.runtime import features, relevance
from segmo.runtime.attention import reference, triton
from segmo.runtime.attention.decode import Piece, decode_attention
from segmo.runtime.attention.merge import merge_parts
from segmo.runtime.attention.tiles import Tiling, tile_schedule
from segmo.runtime.kernels import question, scan
from segmo.runtime.kernels.compact import Runs, compact
from segmo.runtime.kernels.configs import attention_spec
from segmo.runtime.kernels.device import architecture, workers
from segmo.runtime.kernels.specs import AttentionSpec, dtype_name
from segmo.runtime.kernels.tuned import candidates, tune
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.schedule import RowSchedule, pack

HEADS, GROUPS, LAYERS = 28, 4, 28  # Qwen2.5-VL-7B
LIMIT = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}


def example_row(length: int, segments: int = 8) -> RowSchedule:
    """Sinks, segments of one length, the video's first 256 tokens as context, a question."""
    video = length - 64
    ends = tuple(32 + video * (segment + 1) // segments for segment in range(segments))
    return RowSchedule(0, 32, ends, length, tuple(range(32, 32 + min(256, video))))


def qkv(length: int, head_size: int, dtype: torch.dtype, heads: int = HEADS, groups: int = GROUPS) -> list[Tensor]:
    """Random q, k, v laid out as a model makes them."""
    generator = torch.Generator("cuda").manual_seed(length + head_size)
    shapes = [(1, length, count, head_size) for count in (heads, groups, groups)]
    return [torch.randn(shape, generator=generator, device="cuda", dtype=dtype).transpose(1, 2) for shape in shapes]


def _error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def check_attention() -> list[dict[str, Any]]:
    """Segment attention, the merge and decode against fp64 for every head size and dtype."""
    rows = []
    row = example_row(700, 3)
    for head_size in (64, 80, 96, 128, 256):
        for dtype, limit in LIMIT.items():
            q, k, v = qkv(700, head_size, dtype, 14, 2)
            scale = head_size**-0.5
            wide = [x.double() for x in (q, k, v)]
            expected = reference.segment_attention(*wide, pack([row]), scale)
            out, _ = triton.segment_attention_lse(q, k, v, pack([row]), scale)
            full = reference.segment_attention(*wide, pack([RowSchedule(0, 0, (700,), 700, ())]), scale)[:, :, -1]
            one, _ = decode_attention(
                q[:, :, -1], [Piece(k[:, :, :333], v[:, :, :333]), Piece(k[:, :, 333:], v[:, :, 333:])], scale
            )
            for name, error in (("segment attention", _error(out, expected)), ("decode", _error(one, full))):
                rows.append(
                    {
                        "check": name,
                        "head_size": head_size,
                        "dtype": dtype_name(dtype),
                        "error": error,
                        "ok": error < limit,
                    }
                )
    return rows


def check_others() -> list[dict[str, Any]]:
    """The merge, CAS scoring and compaction against torch on the device."""
    generator = torch.Generator("cuda").manual_seed(0)
    parts = torch.randn(5, 2, 8, 100, 128, generator=generator, device="cuda")
    lse = torch.randn(5, 2, 8, 100, generator=generator, device="cuda")
    merged, _ = merge_parts(parts, lse)
    expected = (parts.double() * lse.double().softmax(0)[..., None]).sum(0)
    frames, cells = 12, 196
    frame = torch.arange(frames, device="cuda").repeat_interleave(cells)[None]
    cell = torch.arange(cells, device="cuda").repeat(frames)[None]
    x = torch.randn(1, frames * cells, 3584, generator=generator, device="cuda").bfloat16()
    novelty, similarity = scan.scan_video(x, frame, cell)
    wide_novelty, wide_similarity = features.scan_video(x, frame, cell)
    q, k, _ = qkv(frames * cells + 40, 128, torch.bfloat16)
    scene = torch.nn.functional.pad(torch.nn.functional.pad(frame // 4, (10, 0), value=SINK), (0, 30), value=QUERY)
    padded = torch.nn.functional.pad(cell, (10, 30), value=-1)
    asked = question.attention_relevance(q, k, scene, padded, None, 128**-0.5, 4)
    wide_asked = relevance.attention_relevance(q.float(), k.float(), scene, padded, None, 128**-0.5, 4)
    key = torch.rand(1, frames * cells, generator=generator, device="cuda").round(decimals=2)
    index, cut = compact(Runs(key, [[0, 0, frames * cells, 500, 0]]), 500, {"hidden": x})
    kept = torch.argsort(key[0], descending=True, stable=True)[:500].sort().values
    errors = {
        "merge": (_error(merged, expected), 1e-6),
        "novelty": (_error(novelty, wide_novelty), 1e-4),
        "frame similarity": (_error(similarity, wide_similarity), 1e-4),
        "question's attention": (_error(asked[:, :3], wide_asked[:, :3]), 5e-3),
        "kept tokens": (float((index[0] != kept).sum()), 0.5),
        "kept hidden states": (float((cut["hidden"][0] != x[0, kept]).sum()), 0.5),
    }
    return [{"check": name, "error": error, "ok": error < limit} for name, (error, limit) in errors.items()]


def seconds(run: Callable[[], Any]) -> float:
    """Median time of a launch, caches flushed between launches."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=25, rep=100, return_mode="median")) / 1e3


def _launch_seconds(q: Tensor, k: Tensor, v: Tensor, row: RowSchedule) -> Callable[[AttentionSpec], float]:
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], device="cuda")

    def measure(spec: AttentionSpec) -> float:
        tiling = Tiling(spec.config.block_m, spec.config.block_n, spec.repeats, k.shape[1], workers(q.device))
        tiles = tile_schedule(pack([row]), q.shape[2], tiling, q.device)
        return seconds(lambda: triton.launch(q, k, v, tiles, spec, q.shape[3] ** -0.5, out, lse))

    return measure


def tune_attention(head_size: int, dtype: torch.dtype, length: int) -> dict[str, Any]:
    """Times the candidate tiles on one layer of a long prompt; keeps the fastest on disk."""
    q, k, v = qkv(length, head_size, dtype)
    default = attention_spec(architecture(q.device), head_size, dtype_name(dtype), HEADS // GROUPS)
    laid_out = attention_spec(
        architecture(q.device), head_size, dtype_name(dtype), HEADS // GROUPS, (k.stride(2), v.stride(2))
    )
    measure = _launch_seconds(q, k, v, example_row(length))
    choices = candidates(architecture(q.device), head_size, dtype_name(dtype))

    def with_strides(spec: AttentionSpec) -> float:
        import dataclasses

        return measure(dataclasses.replace(laid_out, config=spec.config))

    best = tune(torch.cuda.get_device_name(), default, choices, with_strides)
    return {"head_size": head_size, "dtype": dtype_name(dtype), "default": vars(default.config), "tuned": vars(best)}


def _flex(row: RowSchedule, length: int) -> Callable[..., Tensor]:
    """FlexAttention, compiled, with SegMo's mask as its block mask."""
    segment = torch.full((length,), -2, device="cuda")
    start = row.sink_end
    segment[:start] = -1
    for index, end in enumerate(row.segment_ends):
        segment[start:end] = index
        start = end
    context = torch.zeros(length, dtype=torch.bool, device="cuda")
    context[list(row.context)] = True

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((segment[j] == -1) | (segment[i] == -2) | (segment[i] == segment[j]) | context[j])

    mask = create_block_mask(visible, None, None, length, length, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def time_attention(length: int, head_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """One layer, and all layers of a prefill with one tile schedule, in seconds."""
    q, k, v = qkv(length, head_size, dtype)
    row = example_row(length)
    schedule = pack([row])
    scale = head_size**-0.5
    flex = _flex(row, length)
    wide_k, wide_v = (x.repeat_interleave(HEADS // GROUPS, 1) for x in (k, v))

    def full() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, wide_k, wide_v, is_causal=True)

    def ours() -> Tensor:
        return triton.segment_attention(q, k, v, schedule, scale)

    agree = _error(ours(), flex(q, k, v))
    times = {"sdpa_flash_full": seconds(full), "flex_same_mask": seconds(lambda: flex(q, k, v)), "segmo": seconds(ours)}
    layers = {
        "sdpa_flash_full_layers": seconds(lambda: [full() for _ in range(LAYERS)]),
        "segmo_layers": seconds(lambda: [ours() for _ in range(LAYERS)]),
    }
    return {
        "tokens": length,
        "head_size": head_size,
        "dtype": dtype_name(dtype),
        "differs_from_flex": agree,
        **times,
        **layers,
    }


def _table(rows: list[dict[str, Any]], device: str) -> Table:
    table = Table(title=f"Measured on {device}: one layer, and {LAYERS} layers, in milliseconds")
    columns = ("sdpa_flash_full", "flex_same_mask", "segmo", "sdpa_flash_full_layers", "segmo_layers")
    for name in ("tokens", "D", *columns, "speed-up over full"):
        table.add_column(name, justify="right")
    for row in rows:
        times = [f"{row[name] * 1e3:.3f}" for name in columns]
        speedup = f"{row['sdpa_flash_full'] / row['segmo']:.2f}x"
        table.add_row(str(row["tokens"]), str(row["head_size"]), *times, speedup)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--minutes", type=float, default=10.0, help="no new measurement is started after this")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured. 'segmo kernels' compiles the kernels without one.")
        return 2
    console = Console(width=160)
    deadline = time.monotonic() + 60 * options.minutes
    device = torch.cuda.get_device_name()
    result: dict[str, Any] = {"device": device, "torch": torch.__version__}
    result["checks"] = check_attention() + check_others()
    wrong = [check for check in result["checks"] if not check["ok"]]
    console.print(f"{len(result['checks']) - len(wrong)} of {len(result['checks'])} checks passed")
    for check in wrong:
        console.print(f"[red]wrong:[/red] {check}")
    result["tuned"], result["times"] = [], []
    for head_size in (128, 64):
        if time.monotonic() < deadline:
            result["tuned"].append(tune_attention(head_size, torch.bfloat16, 16384))
    for length in (4096, 16384, 65536):
        for head_size in (128, 64):
            if time.monotonic() < deadline:
                result["times"].append(time_attention(length, head_size, torch.bfloat16))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(result, indent=1))
    console.print(_table(result["times"], device))
    console.print(f"written to {options.out / 'gpu.json'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
