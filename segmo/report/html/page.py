"""The page: what goes into each section, and how it stays small."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from segmo.passes.runner import PassRecord
from segmo.report.html import blocks, drawing, ranks, video
from segmo.report.html.alike import fold_alike, names_of, spans
from segmo.report.html.changes import Fold, Row, record_changes
from segmo.report.html.kernels import kernels
from segmo.report.prefill import Prefill
from segmo.report.record import GraphReport, Record, op_changes

TEMPLATES = Path(__file__).parent / "templates"
MOST_ROWS = 6_000  # of graph changes; a row is about 400 bytes of the page
MOST_GRAPHS = 24
MOST_SCENES = 256


@dataclass
class Room:
    """How much of the graphs' changes still fits, and what was left out."""

    rows: int
    left_out: list[str]


@dataclass(frozen=True)
class Change:
    """What one pass changed: its folds, and one of them drawn, before and after."""

    name: str
    folds: tuple[Fold, ...]
    drawn: str
    before: drawing.Drawing
    after: drawing.Drawing
    left_out: int


@dataclass(frozen=True)
class Graph:
    """One graph of the report."""

    number: int
    report: GraphReport
    seconds: float
    slowest: float
    changes: tuple[Change, ...]

    @property
    def reasons(self) -> list[tuple[str, list[str]]]:
        """Each reason why a pass did not apply, with the passes that have it."""
        found: dict[str, list[str]] = {}
        for record in self.report.passes:
            for miss in record.misses:
                place = f", at {miss.place}" if miss.place else ""
                found.setdefault(f"{miss.reason}. To change that: {miss.remedy}{place}", []).append(record.name)
        return list(found.items())


def render_page(report: Record, targets: Sequence[str] = ()) -> str:
    """See :meth:`segmo.report.report.Report.to_html`."""
    room = Room(MOST_ROWS, [])
    shown = report.graphs[:MOST_GRAPHS]
    if len(shown) < len(report.graphs):
        room.left_out.append(f"graphs {len(shown)} to {len(report.graphs) - 1}: print(segmo.last_report()) lists them")
    graphs = [_graph(number, graph, room) for number, graph in enumerate(shown)]
    room.left_out += _alike(graphs)
    script = _asset("report.js")
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            graphs=graphs,
            lost=[(number, name, miss) for number, graph in enumerate(shown) for name, miss in graph.unexpected()],
            prefill=_prefill(report.prefill, room) if report.prefill else None,
            kernels=kernels((choice for graph in shown for choice in graph.choices), targets),
            timeline=ranks.timeline(report.plan) if report.plan else None,
            rank_names=ranks.NAMES,
            options=report.options.as_dict(),
            left_out=room.left_out,
            style=_asset("report.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            op_changes=op_changes,
            spans=spans,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    """Escapes everything that a template does not mark as its own."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _graph(number: int, graph: GraphReport, room: Room) -> Graph:
    changed = [change for record in graph.passes if (change := _change(number, record, room))]
    seconds = [record.seconds for record in graph.passes]
    return Graph(number, graph, sum(seconds), max(seconds, default=0.0), tuple(changed))


def _change(number: int, record: PassRecord, room: Room) -> Change | None:
    changed = record_changes(record)
    if not changed:
        return None
    folds = fold_alike(changed, names_of(record))
    drawn = max(folds, key=lambda fold: (fold.title.startswith("layer"), len(fold.likewise)))
    kept: list[Fold] = []
    for fold in folds:
        if len(fold.rows) > room.rows and (kept or room.rows <= 0):
            break
        kept.append(_cut(fold, max(room.rows, 0)))
        room.rows -= len(fold.rows)
    left_out = len(folds) - len(kept)
    if left_out:
        room.left_out.append(
            f"graph {number}, {record.name}: {folds[len(kept)].title} to {folds[-1].title}: "
            f"segmo inspect MODEL --diff {record.name} prints them"
        )
    return Change(record.name, tuple(kept), drawn.title, *drawing.draw(record, drawn), left_out)


def _alike(graphs: list[Graph]) -> list[str]:
    """Says how many layers are not shown because another one stands for them."""
    count = sum(len(fold.likewise) for graph in graphs for change in graph.changes for fold in change.folds)
    what = "changes of layers that are, names apart, those of the layer that is shown"
    return [f"{count:,} {what}: segmo inspect MODEL --diff PASS prints them"] if count else []


def _cut(fold: Fold, rows: int) -> Fold:
    if len(fold.rows) <= rows:
        return fold
    rest = Row("gap", f"{len(fold.rows) - rows:,} more left out", "")
    return replace(fold, rows=(*fold.rows[:rows], rest))


def _prefill(prefill: Prefill, room: Room) -> dict[str, Any]:
    tokens, scenes = prefill.tokens(), prefill.scenes()
    frames = video.frames(prefill, scenes) if scenes else []
    total = scenes[-1]["end_frame"] if scenes else 0
    if len(frames) < total:
        room.left_out.append(f"{total - len(frames):,} of {total:,} frames; those shown stand for every scene")
    if len(scenes) > MOST_SCENES:
        room.left_out.append(f"scenes {MOST_SCENES} to {len(scenes) - 1}: the JSON report has them")
    return {
        "tokens": tokens,
        "share": tokens["kept"] / tokens["video"] if tokens["video"] else 1.0,
        "scenes": scenes[:MOST_SCENES],
        "relevance": _bars([scene["relevance"] for scene in scenes]),
        "most": max((scene["kept"] for scene in scenes), default=0),
        "novelty": max((scene["novelty"] for scene in scenes), default=0.0),
        "total": total,
        "frames": frames,
        "curves": video.curves(prefill) if scenes else {},
        "shown": prefill.shown,
        "rule": blocks.picture(prefill),
        "rows": int(prefill.frame.shape[0]),
    }


def _bars(values: list[float | None]) -> list[float | None]:
    """Values between 0 and 1 for the lengths of bars; scorers have scales of their own."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return [None if value is None else (value - low) / (high - low) if high > low else 1.0 for value in values]
