"""Choose SegMo's defaults on the validation split: python benchmarks/sceneqa/choose.py --out out/sceneqa-choose

    python benchmarks/sceneqa/choose.py --difficulty hard --videos 12 --keep 0.125 --out out/choose-hard

One option at a time, the others at their defaults. Results are saved as they come, and a run that was broken off goes
on. The table gives each value's difference to the present default over the same questions; a value is worth changing
to where the interval of that difference is above zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from evaluate import PER_KIND
from rich.console import Console
from rich.table import Table

from segmo.options import Options
from segmo.sceneqa.evaluate import build_set, evaluate
from segmo.sceneqa.methods import Method, both_method, cas_method
from segmo.sceneqa.model import load_model, weights_for
from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.results import OVERALL, paired_difference, summarise
from segmo.sceneqa.task import DIFFICULTIES

LAYERS = (0, 1, 2, 3)
BALANCES = (0.0, 0.25, 0.75, 1.0)
CONTEXTS = (0, 1, 4)
TAILS = (0, 1, 4)
SEGMENTS = (2, 4, 8)


def candidates(keep: float) -> list[Method]:
    """The defaults first, then every other value of one option."""
    return [
        both_method(keep, "defaults"),
        *(cas_method(keep, f"CAS, attention of layer {n}", scorer="attention", layer=n) for n in LAYERS),
        cas_method(keep, "CAS"),
        *(both_method(keep, f"balance {value}", balance=value) for value in BALANCES),
        *(both_method(keep, f"context {value}", context=value) for value in CONTEXTS),
        *(both_method(keep, f"tails {value}", tails=value) for value in TAILS),
        *(both_method(keep, f"segments {value}", segments=value) for value in SEGMENTS),
    ]


def choice_table(records: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Accuracy of each candidate, and its difference to the defaults at the same budget."""
    table = Table(title=title, title_justify="left")
    table.add_column("candidate")
    for name in ("budget", *KINDS, OVERALL, "to defaults"):
        table.add_column(name, justify="right")
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_key.setdefault(record["key"], []).append(record)
    for row in summarise(records, {}):
        mine, default = by_key[f"{row.name} @ {row.keep:g}"], by_key[f"defaults @ {row.keep:g}"]
        shares = [f"{100 * row.accuracy[kind].value:.1f}" for kind in (*KINDS, OVERALL)]
        table.add_row(row.name, f"{100 * row.keep:g}%", *shares, str(paired_difference(mine, default)))
    return table


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sceneqa-choose", help="folder for results")
    parser.add_argument("--difficulty", default="standard", choices=tuple(DIFFICULTIES))
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.125], help="budgets")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    difficulty = DIFFICULTIES[args.difficulty]
    model, processor = load_model(weights_for(difficulty))
    questions = build_set(model, processor, "validation", difficulty, args.videos, PER_KIND)
    methods = [method for keep in args.keep for method in candidates(keep)]
    records = evaluate(model, methods, questions, Path(args.out) / "results.jsonl")
    default = Options()
    title = (
        f"{questions.label}\ndefaults: CAS+LSP, scorer {default.scorer}, layer {default.layer}, "
        f"balance {default.balance}, context {default.context}, tails {default.tails}, segments {default.segments}"
    )
    table = choice_table(records, title)
    Console(width=180).print(table)
    with (Path(args.out) / "table.txt").open("w") as file:
        Console(file=file, width=180).print(table)


if __name__ == "__main__":
    main()
