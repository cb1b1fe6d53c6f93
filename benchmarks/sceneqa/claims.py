"""The comparisons that the benchmark is for, each over the same questions: a table of differences in accuracy.

python benchmarks/sceneqa/claims.py out/sceneqa-eval/results.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.results import paired_difference, read_results

RIVALS = ("uniform frames", "random tokens", "EVS", "FastVID", "FastV")
FOUND = ("retrieve", "moment")
Records = Mapping[str, Sequence[Mapping[str, Any]]]


def _comparisons(budgets: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of row keys: ours, and what it is compared with."""
    found = []
    for budget in budgets:
        found += [(f"CAS embedding @ {budget}", f"{rival} @ {budget}") for rival in RIVALS]
        found.append((f"CAS attention @ {budget}", f"uniform frames @ {budget}"))
        found.append((f"CAS+LSP @ {budget}", f"uniform frames @ {budget}"))
        found.append((f"CAS+LSP @ {budget}", "full attention @ 1"))
    for segments in (2, 4, 8):
        found.append((f"LSP {segments} segments, context of 2 @ 1", f"LSP {segments} segments, no context @ 1"))
        found.append((f"LSP {segments} segments, context of 2 @ 1", "full attention @ 1"))
    return found


def claim_table(records: Records, title: str) -> Table:
    """A row for each comparison whose two methods were run."""
    table = Table(title=title, title_justify="left")
    for name in ("method", "compared with", *KINDS, "retrieve, moment", "all kinds"):
        table.add_column(name, justify="left" if name in ("method", "compared with") else "right")
    budgets = sorted({key.split(" @ ")[1] for key in records if not key.endswith("@ 1")}, key=float, reverse=True)
    for ours, theirs in _comparisons(budgets):
        if ours in records and theirs in records:
            pair = records[ours], records[theirs]
            each = [str(paired_difference(*pair, [kind])) for kind in KINDS]
            table.add_row(ours, theirs, *each, str(paired_difference(*pair, FOUND)), str(paired_difference(*pair)))
    return table


def main() -> None:
    """Print the table of one result file."""
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    title = ""
    for record in read_results(Path(sys.argv[1])):
        by_key.setdefault(record["key"], []).append(record)
        title = record["set"]
    Console(width=200).print(claim_table(by_key, f"{title}\nDifference in accuracy, percent, with 95% interval"))


if __name__ == "__main__":
    main()
