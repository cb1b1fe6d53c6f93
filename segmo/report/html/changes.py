"""What one pass changed in a graph, side by side: changed nodes and their neighbours only, folded by decoder layer."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from segmo.passes.runner import PassRecord
from segmo.report.text import node_name, readable

CONTEXT = 2  # unchanged nodes that are shown on either side of a change

_LAYER = re.compile(r"(?<!encoder)_modules_layers_modules_(\d+)_")  # an encoder's layers are the vision tower's
_BEHIND = re.compile(r"language_model_modules_norm_|lm_head_")
_ALIAS = re.compile(r"\w+ = L_\w+$")  # a parameter under the name that the rest of the code uses
_PARAMETER = re.compile(r"\b[lL]_(?:self|kwargs|args)_\w+")

_Pair = tuple[int, int]  # of a line's place before and after

INPUTS, BEFORE, BEHIND = "inputs", "before the decoder layers", "behind the decoder layers"


@dataclass(frozen=True)
class Row:
    """One line of the two columns.

    Attributes:
        kind: "same", "changed", "added", "removed" or "gap".
        left, right: the node before and after; empty where there is none. A gap's ``left`` says how much is left out.
    """

    kind: str
    left: str
    right: str


@dataclass(frozen=True)
class Fold:
    """The changes of one layer.

    Attributes:
        title: such as "layer 3".
        rows: in order of the graph.
        likewise: titles of folds that differ from this one in names only, and are not shown themselves.
    """

    title: str
    rows: tuple[Row, ...]
    likewise: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Names of the nodes that differ, before and after."""
        texts = (text for row in self.rows if row.kind not in ("same", "gap") for text in (row.left, row.right))
        return frozenset(name for text in texts if (name := node_name(text)))

    def count(self, kind: str) -> int:
        """How many rows are of a kind."""
        return sum(row.kind == kind for row in self.rows)


@functools.lru_cache(maxsize=64)
def changes(before: str, after: str) -> tuple[Fold, ...]:
    """The folds of what changed between two texts of a graph; empty when nothing did."""
    if before is after:
        return ()
    left, right = (node_lines(text) for text in (before, after))
    places = _places(right)
    folds: dict[str, list[Row]] = {}
    for at, row in _rows(left, right):
        folds.setdefault(places[min(at, len(places) - 1)], []).append(row)
    found = [Fold(title, tuple(rows)) for title, rows in folds.items()]
    return tuple(fold for fold in found if any(row.kind not in ("same", "gap") for row in fold.rows))


@functools.lru_cache(maxsize=16)
def node_lines(text: str) -> tuple[str, ...]:
    """One line per node of a graph's text, without source comments and without parameters' second names."""
    return tuple(line for line in readable(text, sources=False) if not _ALIAS.match(line))


def record_changes(record: PassRecord) -> tuple[Fold, ...]:
    """The folds of one pass."""
    return changes(record.text_before, record.text_after)


def short(line: str) -> str:
    """A node's line with the names of parameters as the model has them: ``layers.0.self_attn.q_proj.weight``."""
    return _PARAMETER.sub(lambda match: _short_name(match[0]), line)


def _short_name(name: str) -> str:
    name = re.sub(r"^[lL]_(self|kwargs|args)_(modules_|parameters_)?", "", name)
    name = re.sub(r"^(model_modules_)?(language_model_modules_)?", "", name)
    return re.sub(r"_(modules|parameters|buffers)_", ".", name).removesuffix("_")


def _places(lines: Sequence[str]) -> list[str]:
    """Where in the model each line is, by the last parameter that was read."""
    place, places = BEFORE, []
    for line in lines:
        if line.startswith("input "):
            places.append(INPUTS)
            continue
        behind, layer = _BEHIND.search(line), _LAYER.search(line)
        if behind:
            place = BEHIND
        elif layer:
            place = f"layer {layer[1]}"
        places.append(place)
    return places


def _rows(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Rows with the index in ``right`` that they stand at; runs of unchanged nodes as a gap."""
    for tag, a, b, c, d in _opcodes(left, right):
        if tag == "equal":
            yield from _unchanged(right, c, d, first=a == 0, last=b == len(left))
        else:
            yield from _changed(left[a:b], right[c:d], c)


def _opcodes(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """Runs that are equal, and what lies between them, as :mod:`difflib` gives them.

    By patience diff (Cohen): lines that are unique on both sides, which all that name a node are, in their longest
    common order. Takes n log n, where difflib takes the number of changes times n, too long for 80 layers.
    """
    a = c = 0  # how far the runs have come
    for start, end in _runs(_in_order(left, right)):
        if start[0] > a or start[1] > c:
            yield "replace", a, start[0], c, start[1]
        a, c = end[0] + 1, end[1] + 1
        yield "equal", start[0], a, start[1], c
    if a < len(left) or c < len(right):
        yield "replace", a, len(left), c, len(right)


def _runs(pairs: list[_Pair]) -> Iterator[tuple[_Pair, _Pair]]:
    """First and last pair of each stretch in which both sides go on line by line."""
    start = 0
    for at, (one, other) in enumerate(pairs):
        if at + 1 == len(pairs) or pairs[at + 1] != (one + 1, other + 1):
            yield pairs[start], pairs[at]
            start = at + 1


def _in_order(left: Sequence[str], right: Sequence[str]) -> list[_Pair]:
    """Places of unique common lines, as many as have the same order on both sides."""
    repeated = {line for lines in (left, right) for line, count in Counter(lines).items() if count > 1}
    places = {line: at for at, line in enumerate(right) if line not in repeated}
    pairs = [(at, places[line]) for at, line in enumerate(left) if line in places]
    ends: list[int] = []  # least last place of an increasing run of each length, and where that pair stands
    where: list[int] = []
    before: list[int] = []
    for number, (_, place) in enumerate(pairs):
        length = bisect_left(ends, place)
        before.append(where[length - 1] if length else -1)
        ends[length : length + 1] = [place]
        where[length : length + 1] = [number]
    found, number = [], where[-1] if where else -1
    while number >= 0:
        found.append(pairs[number])
        number = before[number]
    return found[::-1]


def _unchanged(right: Sequence[str], start: int, end: int, first: bool, last: bool) -> Iterator[tuple[int, Row]]:
    head = start if first else min(start + CONTEXT, end)
    tail = end if last else max(end - CONTEXT, head)
    for at in range(start, head):
        yield at, Row("same", short(right[at]), short(right[at]))
    if tail - head == 1:
        yield head, Row("same", short(right[head]), short(right[head]))
    elif tail > head:
        yield (tail - 1 if first else head), Row("gap", f"{tail - head:,} unchanged", "")
    for at in range(tail, end):
        yield at, Row("same", short(right[at]), short(right[at]))


def _changed(left: Sequence[str], right: Sequence[str], at: int) -> Iterator[tuple[int, Row]]:
    """Pairs nodes that kept their name, and puts what was added or removed between them."""
    names = {node_name(line): place for place, line in enumerate(right) if node_name(line)}
    done = 0
    for line in left:
        place = names.get(node_name(line), -1)
        if place < done:
            yield at + done, Row("removed", short(line), "")
            continue
        for added in right[done:place]:
            yield at + done, Row("added", "", short(added))
            done += 1
        yield at + place, Row("changed", short(line), short(right[place]))
        done = place + 1
    for added in right[done:]:
        yield at + done, Row("added", "", short(added))
        done += 1
