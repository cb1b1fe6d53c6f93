"""Segment attention's kernel beside PyTorch's FlexAttention kernel, both compiled here for GPUs that need not
be there.

    python benchmarks/compare_kernels.py [--target sm_80,sm_90,sm_100] [--head-size 64,128] [--dtype bf16] [--json]

Both get SegMo's mask and the shapes of a GQA model. Each target and head size has FlexAttention with inductor's default
config, FlexAttention with our tile sizes, and ours. The loop is the leanest one: whole tiles that need no mask.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from flex_kernel import CAPABILITY, default_config, render_flex
from rich.console import Console
from rich.table import Table

from segmo.runtime.kernels.configs import attention_spec
from segmo.runtime.kernels.inspection import Inspection, inspect
from segmo.runtime.kernels.inventory import REPEATS
from segmo.runtime.kernels.render import Kernel, render
from segmo.runtime.kernels.specs import HEAD_SIZES, Config
from segmo.runtime.kernels.targets import compile_entry

GROUPS = 4


def _facts(name: str, target: str, config: Config, kernel: Kernel, entry: str) -> dict[str, Any]:
    found: Inspection = inspect(compile_entry(kernel, entry, target))
    loop = found.main_loop
    return {
        "target": target,
        "kernel": name,
        "config": f"{config.block_m}x{config.block_n} w{config.warps} s{config.stages}",
        "registers": found.registers,
        "stack_bytes": found.stack,
        "spill_instructions": found.spill_instructions,
        "shared_bytes": found.shared,
        "occupancy": found.occupancy,
        "matrix": " ".join(found.matrix),
        "async_copies": found.async_copies,
        "loop_instructions": loop.instructions if loop else 0,
        "per_matrix_instruction": round(loop.ratio, 2) if loop else 0.0,
    }


def compare(target: str, head_size: int, dtype: str = "bf16") -> list[dict[str, Any]]:
    """Three rows: FlexAttention as inductor would launch it, FlexAttention with our tiles, and ours."""
    spec = attention_spec(target, head_size, dtype, REPEATS)
    rows = []
    theirs = default_config(target, head_size, dtype)
    for name, config in (("FlexAttention, default", theirs), ("FlexAttention, our tiles", spec.config)):
        kernel = render_flex(config, head_size, dtype, REPEATS, GROUPS)
        rows.append(_facts(name, target, config, kernel, "flex_attention_kernel"))
    rows.append(_facts("segment attention", target, spec.config, render(spec), "segment_attention_kernel"))
    return [{"head_size": head_size, "dtype": dtype, **row} for row in rows]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Compiled, not run: FlexAttention and segment attention, both with SegMo's mask")
    for name in ("target", "D", "kernel", "tiles"):
        table.add_column(name)
    for name in ("regs", "stack B", "spill instr.", "shared", "occ", "matrix", "async", "loop", "per mma"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["target"],
            str(row["head_size"]),
            row["kernel"],
            row["config"],
            str(row["registers"]),
            str(row["stack_bytes"]),
            str(row["spill_instructions"]),
            str(row["shared_bytes"]),
            str(row["occupancy"]),
            row["matrix"],
            str(row["async_copies"]),
            str(row["loop_instructions"]),
            f"{row['per_matrix_instruction']:.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=",".join(CAPABILITY))
    parser.add_argument("--head-size", default=",".join(map(str, HEAD_SIZES)))
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for target in options.target.split(",")
        for head_size in map(int, options.head_size.split(","))
        for row in compare(target, head_size, options.dtype)
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        Console(width=160).print(_table(rows))


if __name__ == "__main__":
    main()
