"""Results of an evaluation: one JSON line for each method and video, and the table made of them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from segmo.sceneqa.questions import CHANCE, KINDS

OVERALL = "all kinds"


@dataclass(frozen=True)
class Share:
    """``right`` of ``total``, with a 95% interval."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share, NaN of nothing."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95% (Wilson, 1927)."""
        if not self.total:
            return (math.nan, math.nan)
        z, n, p = 1.959964, self.total, self.right / self.total
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} ({100 * low:.1f}-{100 * high:.1f})"


@dataclass(frozen=True)
class Row:
    """One method at one budget.

    Attributes:
        accuracy: for each kind, and ``OVERALL``: the mean over kinds is not taken, each question counts once.
        kept: mean number of video tokens that reach the last layer.
        flops: of the prefill, as a part of full attention's.
        time: seconds of a prefill as a part of full attention's; NaN where not measured.
    """

    name: str
    keep: float
    accuracy: Mapping[str, Share]
    kept: float
    flops: float
    time: float


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file; a half-written last line is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:  # no JSON, or no text
            continue
    return records


def _shares(records: Sequence[Mapping[str, Any]]) -> dict[str, Share]:
    counts = {kind: [0, 0] for kind in (*KINDS, OVERALL)}
    for record in records:
        for kind, right in zip(record["kinds"], record["right"], strict=True):
            for name in (kind, OVERALL):
                counts[name][0] += right
                counts[name][1] += 1
    return {kind: Share(*count) for kind, count in counts.items()}


def summarise(records: Iterable[Mapping[str, Any]], times: Mapping[str, float]) -> list[Row]:
    """Rows in the order in which the methods first appear; the first is the one that others are compared
    with.

    Args:
        records: from :func:`read_results`.
        times: seconds of a prefill by method key.
    """
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record["key"], []).append(record)
    rows: list[Row] = []
    reference = 0.0
    for key, mine in by_method.items():
        flops = sum(record["flops"] for record in mine) / len(mine)
        reference = reference or flops
        first = next(iter(by_method))
        rows.append(
            Row(
                mine[0]["name"],
                mine[0]["keep"],
                _shares(mine),
                sum(record["kept"] for record in mine) / len(mine),
                flops / reference,
                times.get(key, math.nan) / times.get(first, math.nan),
            )
        )
    return rows


@dataclass(frozen=True)
class Difference:
    """Accuracy of one method minus that of another on the same questions, with a 95% interval.

    Attributes:
        value, half: the difference, and half the interval's width (normal approximation over paired questions).
        total: questions.
    """

    value: float
    half: float
    total: int

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} +- {100 * self.half:.1f}"


def paired_difference(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], kinds: Iterable[str] = KINDS
) -> Difference:
    """Compare two methods question by question, which tells smaller differences apart than two intervals do.

    Args:
        ours, theirs: records of one method each, over the same videos.
        kinds: of questions that count.
    """
    wanted = set(kinds)
    by_video = {record["video"]: record for record in theirs}
    values: list[int] = []
    for record in ours:
        other = by_video[record["video"]]
        for kind, mine, his in zip(record["kinds"], record["right"], other["right"], strict=True):
            if kind in wanted:
                values.append(mine - his)
    if not values:
        return Difference(math.nan, math.nan, 0)
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return Difference(mean, 1.959964 * math.sqrt(variance / len(values)), len(values))


def result_table(rows: Sequence[Row], title: str) -> Table:
    """The table that is printed; accuracies in percent with 95% intervals."""
    table = Table(title=title, title_justify="left")
    table.add_column("method", style="bold")
    table.add_column("budget", justify="right")
    for kind in (*KINDS, OVERALL):
        table.add_column(kind, justify="right")
    for name in ("tokens", "FLOPs", "time"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{100 * row.keep:g}%",
            *(str(row.accuracy[kind]) for kind in (*KINDS, OVERALL)),
            f"{row.kept:.0f}",
            f"{row.flops:.3f}",
            "" if math.isnan(row.time) else f"{row.time:.2f}",
        )
    table.add_row("chance", "", *(f"{100 * CHANCE[kind]:.1f}" for kind in KINDS))
    return table


def _cells(row: Row) -> Iterator[object]:
    yield from (row.name, row.keep)
    for kind in (*KINDS, OVERALL):
        share = row.accuracy[kind]
        low, high = share.interval
        yield from (share.total, f"{share.value:.4f}", f"{low:.4f}", f"{high:.4f}")
    yield from (f"{row.kept:.1f}", f"{row.flops:.4f}", "" if math.isnan(row.time) else f"{row.time:.3f}")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The same figures, unrounded enough to compute with."""
    header = ["method", "budget"]
    for kind in (*KINDS, OVERALL):
        header += [f"{kind} {what}" for what in ("questions", "accuracy", "low", "high")]
    header += ["tokens", "flops of full", "time of full"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(_cells(row) for row in rows)
