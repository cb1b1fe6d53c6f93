"""How long ``import segmo`` takes, and the imports that follow when a model is compiled.

    python benchmarks/imports.py

Each line is a fresh interpreter, the median of ``--runs``; what an interpreter takes that imports nothing is taken off.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

WAYS = (
    "import segmo",
    "import segmo.cli",
    "import torch",
    "import torch, transformers",
    "import torch, transformers, segmo.backend",
)


def seconds(code: str, runs: int) -> float:
    """Median wall time of a fresh interpreter that runs some code."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(arguments)
    nothing = seconds("pass", given.runs)
    for code in WAYS:
        print(f"{code:44} {1e3 * (seconds(code, given.runs) - nothing):8.1f} ms")


if __name__ == "__main__":
    main()
