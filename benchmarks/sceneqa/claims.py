"""The comparisons that the benchmark is for, each over the same questions: a table of differences in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.results import paired_difference

# In the order of the tables.
RIVALS = (
    "uniform frames",
    "last frames",
    "random tokens",
    "EVS",
    "FastVID",
    "FlashVID",
    "FastV",
    "VidCom2",
    "CDPruner",
    "EchoPrune",
)
FOUND = ("retrieve", "moment")
Records = Mapping[str, Sequence[Mapping[str, Any]]]


def _comparisons(budgets: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of row keys: ours, and what it is compared with."""
    found = []
    for budget in budgets:
        found += [(f"CAS embedding @ {budget}", f"{rival} @ {budget}") for rival in RIVALS]
        found.append((f"CAS attention @ {budget}", f"uniform frames @ {budget}"))
        found.append((f"CAS+LSP @ {budget}", f"uniform frames @ {budget}"))
        found.append((f"CAS+LSP @ {budget}", f"CAS embedding @ {budget}"))
        found.append((f"CAS embedding @ {budget}", "full attention @ 1"))
        found.append((f"CAS+LSP @ {budget}", "full attention @ 1"))
        found.append((f"memory @ {budget}", f"CAS+LSP @ {budget}"))
        found.append((f"memory, attention @ {budget}", f"memory @ {budget}"))
        found.append((f"memory, 8 bits @ {budget}", f"memory @ {budget}"))
        found.append((f"memory @ {budget}", "full attention @ 1"))
    variants = (*(f"{segments} segments" for segments in (2, 4, 8)), "no context", "heads alone", "tails alone")
    for variant in variants:
        found.append((f"CAS+LSP, {variant} @ 0.25", "CAS+LSP @ 0.25"))
        found.append((f"CAS+LSP, {variant} @ 0.25", "full attention @ 1"))
    for segments in (2, 4, 8, "scene"):
        found.append((f"LSP {segments} segments, with context @ 1", f"LSP {segments} segments, no context @ 1"))
        found.append((f"LSP {segments} segments, with context @ 1", "full attention @ 1"))
    for blocks in (2, 4, 8):
        found.append((f"LSP {blocks} segments, with context @ 1", f"PEVLM {blocks} blocks @ 1"))
    found.append(("LSP scene segments, with context @ 1", "PEVLM 16 blocks @ 1"))
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
