"""The plan of the ranks as a timeline: bars on a row for each rank and one for the link."""

from __future__ import annotations

from dataclasses import dataclass

from segmo.report.stage_names import STAGE_NAMES
from segmo.runtime.partition.explain import explain
from segmo.runtime.partition.plan import Plan

MOST_ROWS = 64
NAMES = {**STAGE_NAMES, "link": "exchange"}


@dataclass(frozen=True)
class Bar:
    """A stage: kind, start and width in percent of the whole, milliseconds, and whether all wait for it."""

    kind: str
    start: float
    width: float
    milliseconds: float
    critical: bool

    @property
    def title(self) -> str:
        return f"{NAMES[self.kind]}: {self.milliseconds:.2f} ms{', on the critical path' if self.critical else ''}"


@dataclass(frozen=True)
class Line:
    """A row of the timeline."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Timeline:
    """The whole plan.

    Attributes:
        lines: a row for each rank (at most ``MOST_ROWS``) and one for the link.
        milliseconds: predicted time of the prefill.
        imbalance: largest over mean busy time.
        left_out: ranks without a row.
        words: why it is not balanced better.
        used: kinds of stages that occur.
    """

    lines: tuple[Line, ...]
    milliseconds: float
    imbalance: float
    left_out: int
    words: tuple[str, ...]
    used: tuple[str, ...]


def timeline(plan: Plan) -> Timeline:
    """Rows and bars of a plan."""
    critical, rows = set(plan.critical_path), min(plan.world, MOST_ROWS)
    bars: dict[int, list[Bar]] = {row: [] for row in (*range(rows), -1)}
    for name, stage in plan.graph.nodes(data=True):
        start, end = plan.times[name]
        if stage["rank"] in bars and end > start:
            kind = stage["label"] if stage["label"] in NAMES else "link"
            whole = plan.seconds or 1.0
            bar = Bar(kind, 100 * start / whole, 100 * (end - start) / whole, 1e3 * (end - start), name in critical)
            bars[stage["rank"]].append(bar)
    lines = [
        Line("link" if rank < 0 else f"rank {rank}, {plan.loads[rank].tokens:,} tokens", tuple(found))
        for rank, found in bars.items()
    ]
    used = tuple(kind for kind in NAMES if any(bar.kind == kind for line in lines for bar in line.bars))
    return Timeline(tuple(lines), 1e3 * plan.seconds, plan.imbalance, plan.world - rows, tuple(explain(plan)), used)
