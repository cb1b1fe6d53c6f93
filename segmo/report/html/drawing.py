"""The changed neighbourhood of a graph as a picture: boxes for nodes, in rows by their longest way from the top."""

from __future__ import annotations

import re
from dataclasses import dataclass

from segmo.passes.runner import PassRecord
from segmo.report.html.changes import Fold, node_lines
from segmo.report.text import node_name

MOST_NODES = 18
WIDTH, HEIGHT = 168, 34  # of a box
STEP_X, STEP_Y = 180, 62

_WORD = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*\b(?!\()(?! = )")  # no methods, calls, keywords
_CALL = re.compile(r"([\w.]+)\(")


@dataclass(frozen=True)
class Box:
    """A node: its top left corner, what it calls, its name, and whether the pass changed it."""

    x: float
    y: float
    op: str
    name: str
    changed: bool


@dataclass(frozen=True)
class Drawing:
    """One side of a change.

    Attributes:
        boxes: the nodes.
        edges: (x1, y1, x2, y2) from a node's lower side to a user's upper side.
        width, height: of the whole.
        left_out: changed nodes for which there was no room.
    """

    boxes: tuple[Box, ...]
    edges: tuple[tuple[float, float, float, float], ...]
    width: float
    height: float
    left_out: int


def draw(record: PassRecord, fold: Fold) -> tuple[Drawing, Drawing]:
    """The changed nodes of one fold with their direct neighbours, before and after a pass."""
    return _side(record.text_before, fold), _side(record.text_after, fold)


def _side(text: str, fold: Fold) -> Drawing:
    bodies = {node_name(line): _body(line) for line in node_lines(text) if " = " in line}
    names = fold.names
    changed = [name for name in bodies if name in names]
    shown = dict.fromkeys(changed[:MOST_NODES])
    for name in list(shown):  # then what they read, and who reads them, as far as there is room
        for source in _sources(bodies[name], bodies):
            if len(shown) < MOST_NODES:
                shown.setdefault(source)
    first = set(changed[:MOST_NODES])
    for name, body in bodies.items():
        if len(shown) < MOST_NODES and first & set(_sources(body, bodies)):
            shown.setdefault(name)
    sources = {
        name: [s for s in _sources(body, bodies) if s in shown] for name, body in bodies.items() if name in shown
    }
    return _placed(sources, bodies, first, len(changed) - len(first))


def _body(line: str) -> str:
    """What computes a node: the right side, or the call in place that stands in front of it."""
    in_place, _, named = line.rpartition(";  ")
    return in_place or named.split(" = ", 1)[1]


def _sources(body: str, bodies: dict[str, str]) -> list[str]:
    return [word for word in dict.fromkeys(_WORD.findall(body)) if word in bodies]


def _placed(sources: dict[str, list[str]], bodies: dict[str, str], changed: set[str], left_out: int) -> Drawing:
    rank: dict[str, int] = {}
    for name, before in sources.items():  # in order of the graph, so what a node reads comes first
        rank[name] = max((rank[source] + 1 for source in before), default=0)
    rows: dict[int, list[str]] = {}
    for name, row in rank.items():
        rows.setdefault(row, []).append(name)
    width = max(map(len, rows.values()), default=0) * STEP_X
    place: dict[str, tuple[float, float]] = {}
    for row in sorted(rows):
        names = sorted(rows[row], key=lambda name: _mean([place[source][0] for source in sources[name]], width / 2))
        start = (width - len(names) * STEP_X) / 2
        for at, name in enumerate(names):
            place[name] = (start + at * STEP_X + (STEP_X - WIDTH) / 2, row * STEP_Y + 2)
    boxes = tuple(Box(*place[name], operation(bodies[name]), name, name in changed) for name in sources)
    edges = tuple(
        (place[source][0] + WIDTH / 2, place[source][1] + HEIGHT, place[name][0] + WIDTH / 2, place[name][1])
        for name, before in sources.items()
        for source in before
    )
    return Drawing(boxes, edges, width, len(rows) * STEP_Y - STEP_Y + HEIGHT + 4 if rows else 0, left_out)


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def operation(body: str) -> str:
    """What a node does, in short: ``segmo.segment_attention``, ``.view``, ``[...]`` or an operator."""
    call = _CALL.match(body)
    if call:
        path = call[1].removesuffix(".default").split(".")
        if path[0] == "torch":
            return ".".join(path[-2:] if path[1:2] == ["ops"] else path[-1:])
        return f".{path[-1]}" if len(path) > 1 else path[0]
    if re.match(r"\w+\[", body):
        return "[...]"
    sign = re.match(r"-?\w+ (\S+) ", body)
    return sign[1] if sign else body[:24]
