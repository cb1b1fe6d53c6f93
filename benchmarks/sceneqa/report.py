"""Table, CSV, picture and comparisons from answers that a folder holds: python benchmarks/sceneqa/report.py FOLDER

Takes what is there: methods that were not asked about every video yet are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import RIVALS, claim_table
from rich.console import Console

from segmo.sceneqa.plot import draw_results
from segmo.sceneqa.results import read_results, result_table, summarise, write_csv

FULL = "full attention"
# Rows of the table in this order, each with its budgets from large to small.
ORDER = (FULL, *RIVALS, "CAS embedding", "CAS attention", "CAS+LSP")


def _place(key: str) -> tuple[int, str, float]:
    name, _, keep = key.rpartition(" @ ")
    return (ORDER.index(name) if name in ORDER else len(ORDER), name, -float(keep))


def complete_records(
    records: Sequence[Mapping[str, Any]], videos: int | None = None
) -> dict[str, list[Mapping[str, Any]]]:
    """Records by row, in the table's order, of the rows that hold as many videos as the fullest one.

    A method may have been asked about a video twice, by processes side by side; one answer counts.
    """
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if videos is None or record["video"] < videos:
            found.setdefault(record["key"], {})[record["video"]] = record
    most = max((len(videos) for videos in found.values()), default=0)
    keys = sorted((key for key, videos in found.items() if len(videos) == most), key=_place)
    return {key: list(found[key].values()) for key in keys}


def write_report(folder: Path, console: Console, videos: int | None = None) -> None:
    """Print the table and the comparisons; write ``table.txt``, ``results.csv`` and ``results.png``.

    Args:
        folder: that ``evaluate.py`` filled.
        videos: how many of the first videos count; all where None.

    Raises:
        FileNotFoundError: the folder holds no answers.
    """
    answers = folder / "results.jsonl"
    if not answers.is_file():
        raise FileNotFoundError(f"{answers} does not exist: fill the folder first with evaluate.py --out {folder}")
    by_key = complete_records(read_results(answers), videos)
    times = folder / "times.json"
    known: dict[str, float] = json.loads(times.read_text()) if times.is_file() else {}
    everything = [record for records in by_key.values() for record in records]
    rows, title = summarise(everything, known), str(everything[0]["set"])
    if videos is not None:
        title = f"{title}; the first {videos} videos"
    tables = [
        result_table(rows, title),
        claim_table(by_key, f"{title}\nDifference in accuracy, percent, with 95% interval"),
    ]
    with (folder / "table.txt").open("w") as file:
        for table in tables:
            console.print(table)
            Console(file=file, width=200).print(table)
    write_csv(rows, folder / "results.csv")
    draw_results([row for row in rows if row.name in ORDER], title).savefig(folder / "results.png")


def main() -> None:
    """Read the command line and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="that evaluate.py filled")
    parser.add_argument("--videos", type=int, help="how many of the first videos count (default: all)")
    args = parser.parse_args()
    write_report(args.folder, Console(width=200), args.videos)


if __name__ == "__main__":
    main()
