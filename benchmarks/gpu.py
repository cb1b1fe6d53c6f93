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
import traceback
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
from rich.markup import escape
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


def measure(
    place: Place, plan: Plan, dtype: torch.dtype, may_start: Callable[[], bool], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """All results, most wanted first. ``keep`` is given what there is after each part.

    What is left out for want of time is named under "left_out", and what raised an error under "failed".
    """
    result: dict[str, Any] = {
        "device": place.name,
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "segmo": version("segmo")},
        **{part: [] for part in ("checks", "tuned", "prefill", "attention", "left_out", "failed")},
    }

    def take(part: str, what: str, run: Callable[..., Any], *arguments: Any) -> None:
        try:
            found = run(*arguments)  # one row, or a list of them
        except Exception as error:  # noqa: BLE001  time on a GPU is scarce: what else there is to measure is measured
            traceback.print_exc()
            result["failed"].append(f"{part}: {what}: {type(error).__name__}: {error}")
        else:
            for row in found if isinstance(found, list) else [found]:
                if row.get("left_out"):
                    result["left_out"].append(f"{part}: {row['way']}, {what}")
                else:
                    result[part].append(row)
        keep(result)

    def attempt(part: str, what: str, run: Callable[..., Any], *arguments: Any) -> None:
        if may_start():
            take(part, what, run, *arguments)
        else:
            result["left_out"].append(f"{part}: {what}")
            keep(result)

    def tune(heads: Heads) -> None:
        attempt("tuned", str(heads), tune_attention, place, heads, dtype, plan.tuned_length, plan.candidates)

    def attention(length: int, heads: Heads) -> None:
        attempt("attention", f"{length} tokens, {heads}", time_attention, place, heads, length, dtype)

    def prefill(frames: int) -> None:
        attempt("prefill", f"{frames} frames", time_prefill, place, plan.shape, frames, plan.lowering, dtype, may_start)

    for head_size in plan.head_sizes:
        take("checks", f"head size {head_size}", check_attention, place, plan.check_length, head_size)
    take("checks", "other kernels", check_others, place, *plan.scan)
    take("checks", "prefill", check_prefill, place, plan.shape, plan.check_frames, plan.lowering, dtype)
    first, *others = plan.heads
    tune(first)
    attention(plan.lengths[0], first)
    for frames in plan.frames:
        prefill(frames)
    for heads in others:
        tune(heads)
    for length in plan.lengths:
        for heads in plan.heads:
            if (length, heads) != (plan.lengths[0], first):
                attention(length, heads)
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


def write(result: dict[str, Any], folder: Path) -> None:
    """Writes ``gpu.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")


def report(result: dict[str, Any], folder: Path, console: Console) -> int:
    """Prints the table; 1 if a check or a measurement failed."""
    wrong = [check for check in result["checks"] if not check["ok"]]
    console.print(table(result))
    console.print(f"{len(result['checks']) - len(wrong)} of {len(result['checks'])} checks of numerics passed")
    for check in wrong:
        console.print(f"[red]wrong:[/red] {check}")
    for what in result["failed"]:
        console.print(f"[red]failed:[/red] {escape(what)}")
    for what in result["left_out"]:
        console.print(f"left out, because time was up: {what}")
    console.print(f"written to {folder / 'gpu.json'}")
    return 1 if wrong or result["failed"] else 0


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
    result = measure(
        place,
        Plan(),
        torch.bfloat16,
        may_start=lambda: time.monotonic() < deadline,
        keep=lambda result: write(result, options.out),
    )
    return report(result, options.out, Console(width=160))


if __name__ == "__main__":
    sys.exit(main())
