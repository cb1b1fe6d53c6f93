"""How long ``import segmo`` takes, and the imports that follow when a model is compiled.

    python benchmarks/imports.py

Each line is a fresh interpreter, by the clock and of the processor, medians of ``--runs``; what an interpreter takes
that imports nothing is taken off.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

WAYS = (
    "import segmo",
    "import segmo.cli",
    "import torch",
    "import torch, transformers",
    "import torch, transformers, segmo.compiler.backend",
)


def seconds(code: str, runs: int) -> tuple[float, float]:
    """Median seconds of a fresh interpreter that runs some code: by the clock, and of the processor."""
    times = []
    for _ in range(runs):
        start, worked = time.perf_counter(), _processor()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append((time.perf_counter() - start, _processor() - worked))
    clock, processor = (statistics.median(each) for each in zip(*times, strict=True))
    return clock, processor


def _processor() -> float:
    """Processor seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(arguments)
    nothing = seconds("pass", given.runs)
    for code in WAYS:
        clock, processor = (1e3 * (a - b) for a, b in zip(seconds(code, given.runs), nothing, strict=True))
        print(f"{code:44} {clock:8.1f} ms, {processor:8.1f} ms of the processor", flush=True)


if __name__ == "__main__":
    main()
