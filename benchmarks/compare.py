"""Whether a change made SegMo slower: two checkouts side by side, in one run, as ratios.

    git worktree add ../before main
    python benchmarks/compare.py ../before                        # against this checkout
    python benchmarks/compare.py ../before --layers 28 --tokens 16384 --rounds 5

Times of two runs say little on a machine that others use, or that is warm now and was cold before. So the checkouts
take turns, one process after the other, and what is printed is the median over the rounds of this one's time over the
other's: above 1 is slower. Both run this checkout's benchmarks in this environment; nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIRST = ("import_s", "first_token_s", "second_token_s", "processor_s", "passes_s", "again_s")


def as_package(checkout: Path, folder: Path) -> Path:
    """A folder for ``PYTHONPATH`` in which ``segmo`` is that of a checkout, with its rooms in their places."""
    package = folder / "segmo"
    package.mkdir(parents=True)
    for part in (*(checkout / "segmo").iterdir(), checkout / "passes", checkout / "runtime"):
        (package / part.name).symlink_to(part.resolve())
    return folder


def run(script: str, *arguments: str, path: Path) -> str:
    """What a benchmark prints, run with the package in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def figures(path: Path, given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float]]:
    """What one checkout takes in one round: seconds by name."""
    lines = run("first_call.py", "--here", f"--layers={given.layers}", path=path).splitlines()
    first: dict[str, Any] = json.loads(lines[-1])
    for name in FIRST:
        yield f"{given.layers} layers: {name.removesuffix('_s').replace('_', ' ')}", first[name]
    if given.tokens:
        out = folder / "prefill.json"
        lengths = ["--lengths", str(given.tokens), "--dtypes", given.dtype, "--runs", "3", "--out", str(out)]
        run("prefill.py", *lengths, "--ways", *given.ways, path=path)
        for row in json.loads(out.read_text())["rows"]:
            yield f"{given.tokens:,} tokens: {row['way']}", row["seconds"]


def main(arguments: list[str] | None = None) -> None:
    """Print the ratios after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4, help="of the model whose first call is timed")
    parser.add_argument("--tokens", type=int, default=4096, help="of the prefill that is timed; 0 for none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ways", nargs="+", default=["LSP+GCI", "CAS+LSP 0.25"])
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        checkouts = (given.before, HERE.parent)
        paths = [as_package(each, Path(folder) / str(number)) for number, each in enumerate(checkouts)]
        ratios: dict[str, list[float]] = {}
        for number in range(given.rounds):
            # Who goes first in one round goes last in the next.
            order = paths if number % 2 == 0 else paths[::-1]
            found = {path: dict(figures(path, given, Path(folder))) for path in order}
            for name, seconds in found[paths[1]].items():
                ratios.setdefault(name, []).append(seconds / max(found[paths[0]][name], 1e-9))
            print(f"after {number + 1} of {given.rounds} rounds")
            for name, each in ratios.items():
                print(f"  {name:44} {statistics.median(each):6.2f}  ({min(each):.2f} to {max(each):.2f})", flush=True)


if __name__ == "__main__":
    main()
