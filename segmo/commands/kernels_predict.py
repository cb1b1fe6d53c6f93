"""Predicted times of the kernels of one prefill, from data sheets. A roofline, not a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

from segmo.runtime.attention.tiles import Tiling, build
from segmo.runtime.kernels import model
from segmo.runtime.kernels.configs import attention_config, decode_spec
from segmo.runtime.kernels.hardware import Machine, machine
from segmo.runtime.kernels.inventory import HIDDEN, REPEATS
from segmo.runtime.schedule import RowSchedule

GROUPS = 4  # key/value heads of Qwen2.5-VL-7B
TOKENS, SEGMENTS, SINKS, QUESTION, CONTEXT, FRAMES = 16384, 8, 32, 32, 256, 64


def example_row() -> RowSchedule:
    """16 384 tokens: sinks, 8 segments of one length, 256 context tokens at the video's head, a question."""
    video = TOKENS - SINKS - QUESTION
    ends = tuple(SINKS + video * (segment + 1) // SEGMENTS for segment in range(SEGMENTS))
    return RowSchedule(0, SINKS, ends, TOKENS, tuple(range(SINKS, SINKS + CONTEXT)))


def _attention(gpu: Machine, row: RowSchedule, head_size: int, dtype: str) -> model.Prediction:
    config = attention_config(gpu.target, head_size, dtype)
    tiling = Tiling(config.block_m, config.block_n, REPEATS, GROUPS, 2 * gpu.processors)
    tiles = build([row], TOKENS, tiling, torch.device("cpu"))
    return model.segment_attention(gpu, tiles, tiling, 1, TOKENS, head_size, dtype)


def prediction_rows(targets: Sequence[str], head_size: int, dtype: str) -> list[dict[str, Any]]:
    """One row per machine and kernel, for a prefill with the shapes of Qwen2.5-VL-7B."""
    rows = []
    for gpu in map(machine, targets):
        full = RowSchedule(0, 0, (TOKENS,), TOKENS, ())
        block_m = decode_spec(gpu.target, head_size, dtype, REPEATS).config.block_m
        size = model.BYTES[dtype]
        predictions = {
            "full attention, one layer": _attention(gpu, full, head_size, dtype),
            "segment attention, one layer": _attention(gpu, example_row(), head_size, dtype),
            "decode, one layer": model.decode(gpu, 1, GROUPS, REPEATS, TOKENS, head_size, dtype, block_m),
            "scan of the features": model.scan(gpu, TOKENS, FRAMES, HIDDEN, dtype),
            "compaction to a quarter": model.compact(gpu, TOKENS, TOKENS // 4, (HIDDEN + 768) * size + 24),
            "merge of 8 parts": model.merge(gpu, TOKENS * GROUPS * REPEATS, 8, head_size, dtype, dtype),
        }
        for kernel, found in predictions.items():
            rows.append(
                {
                    "machine": gpu.name,
                    "kernel": kernel,
                    "gflop": round(found.flops / 1e9, 2),
                    "mbytes": round(found.bytes / 1e6, 2),
                    "tiles": found.tiles,
                    "predicted_us": round(found.seconds * 1e6, 2),
                    "bound": found.bound,
                    "source": gpu.source,
                }
            )
    return rows


def prediction_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The same as a table."""
    table = Table(
        title=f"Predicted, not measured: roofline times, {TOKENS} tokens in {SEGMENTS} segments",
        caption="peaks from data sheets:\n" + "\n".join(dict.fromkeys(row["source"] for row in rows)),
    )
    for name in ("machine", "kernel"):
        table.add_column(name)
    for name in ("GFLOP", "MB", "tiles", "predicted µs", "bound by"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["machine"],
            row["kernel"],
            f"{row['gflop']:.2f}",
            f"{row['mbytes']:.2f}",
            str(row["tiles"]),
            f"{row['predicted_us']:.2f}",
            row["bound"],
        )
    return table
