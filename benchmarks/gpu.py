"""Everything about the generated kernels that needs a GPU: numerics on the device, tuning, and times.

    python benchmarks/gpu.py [--out out/gpu] [--minutes 10]

Checks every kernel and a small prefill against a reference, tunes segment attention's tiles (the result is kept on
disk and used from then on), times whole prefills of a decoder of Qwen2.5-VL-7B's shape, and segment attention beside
SDPA's flash attention over the whole prompt and FlexAttention with the same block mask. Writes one JSON and prints
one table. Nothing new is started after nine tenths of the minutes. Without a GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_attention import Heads, time_attention, tune_attention
from gpu_checks import check_attention, check_others
from gpu_place import Place
from gpu_prefill import QWEN_7B, Shape, check_prefill, time_prefill
from rich.console import Console
from rich.table import Table

from segmo.runtime.kernels.specs import HEAD_SIZES


@dataclass(frozen=True)
class Plan:
    """How large everything is.

    Attributes:
        head_sizes, check_length: attention that is checked.
        scan: frames, cells of a frame, hidden size and head size of the other checks.
        heads: attention that is tuned and timed.
        tuned_length, candidates: of tuning; all candidates when None.
        lengths: tokens of timed attention.
        shape, check_frames, frames: of the prefills.
        lowering: of SegMo's prefills.
    """

    head_sizes: tuple[int, ...] = HEAD_SIZES
    check_length: int = 700
    scan: tuple[int, int, int, int] = (12, 196, 3584, 128)
    heads: tuple[Heads, ...] = (Heads(28, 4, 128, 28), Heads(28, 4, 64, 28))
    tuned_length: int = 16384
    candidates: int | None = None
    lengths: tuple[int, ...] = (16384, 4096, 65536)
    shape: Shape = QWEN_7B
    check_frames: int = 6
    frames: tuple[int, ...] = (64, 16)
    lowering: str = "auto"


def measure(place: Place, plan: Plan, dtype: torch.dtype, may_start: Callable[[], bool]) -> dict[str, Any]:
    """All results, most wanted first; what is left out for want of time is named under "left_out"."""
    frames, cells, hidden, head_size = plan.scan
    result: dict[str, Any] = {
        "device": place.name,
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "segmo": version("segmo")},
        "checks": check_attention(place, plan.check_length, plan.head_sizes)
        + check_others(place, frames, cells, hidden, head_size)
        + check_prefill(place, plan.shape, plan.check_frames, plan.lowering, dtype),
        "tuned": [],
        "prefill": [],
        "attention": [],
        "left_out": [],
    }

    def attempt(part: str, what: str, run: Callable[..., Any], *arguments: Any) -> None:
        if not may_start():
            result["left_out"].append(f"{part}: {what}")
            return
        found = run(*arguments)  # one row, or a list of them
        for row in found if isinstance(found, list) else [found]:
            if row.get("left_out"):
                result["left_out"].append(f"{part}: {row['way']}, {what}")
            else:
                result[part].append(row)

    first, *others = plan.heads
    attempt("tuned", str(first), tune_attention, place, first, dtype, plan.tuned_length, plan.candidates)
    for count in plan.frames:
        given = (place, plan.shape, count, plan.lowering, dtype, may_start)
        attempt("prefill", f"{count} frames", time_prefill, *given)
    for heads in others:
        attempt("tuned", str(heads), tune_attention, place, heads, dtype, plan.tuned_length, plan.candidates)
    for length in plan.lengths:
        for heads in plan.heads:
            attempt("attention", f"{length} tokens, {heads}", time_attention, place, heads, length, dtype)
    return result


def table(result: dict[str, Any]) -> Table:
    """All times in milliseconds, a row for each comparison."""
    found = Table(title=f"Measured on {result['device']}, milliseconds")
    for name in ("what", "tokens", "D"):
        found.add_column(name)
    for name in ("full attention", "FlexAttention, same mask", "SegMo", "over full"):
        found.add_column(name, justify="right")
    for length in dict.fromkeys(row["tokens"] for row in result["prefill"]):
        rows = {row["way"]: row for row in result["prefill"] if row["tokens"] == length}
        full = rows["eager"]["seconds"] if "eager" in rows else None
        for way, row in rows.items():
            what = f"prefill, {row['layers']} layers, {way}"
            if way != "eager":
                _add(found, what, length, "", full, None, row["seconds"])
    for row in result["attention"]:
        what, layers = "attention, one layer", f"attention, {row['layers']} layers"
        _add(found, what, row["tokens"], row["head_size"], row["full"], row["flex"], row["segmo"])
        _add(found, layers, row["tokens"], row["head_size"], *(row[f"{n}_layers"] for n in ("full", "flex", "segmo")))
    return found


def _add(
    found: Table, what: str, tokens: int, size: int | str, full: float | None, flex: float | None, ours: float
) -> None:
    times = ["-" if value is None else f"{1e3 * value:.3f}" for value in (full, flex, ours)]
    found.add_row(what, f"{tokens:,}", str(size), *times, "-" if full is None else f"{full / ours:.2f}x")


def report(result: dict[str, Any], folder: Path, console: Console) -> int:
    """Writes the JSON, prints the table; 1 if a check failed."""
    wrong = [check for check in result["checks"] if not check["ok"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=1))
    console.print(table(result))
    console.print(f"{len(result['checks']) - len(wrong)} of {len(result['checks'])} checks of numerics passed")
    for check in wrong:
        console.print(f"[red]wrong:[/red] {check}")
    for what in result["left_out"]:
        console.print(f"left out, because time was up: {what}")
    console.print(f"written to {folder / 'gpu.json'}")
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured. 'segmo kernels' compiles the kernels without one.")
        return 2
    deadline = time.monotonic() + 54 * options.minutes
    place = Place(torch.device("cuda", torch.cuda.current_device()))
    result = measure(place, Plan(), torch.bfloat16, lambda: time.monotonic() < deadline)
    return report(result, options.out, Console(width=160))


if __name__ == "__main__":
    sys.exit(main())
