"""Layers that a pass changed in the same way are shown once: of 80 decoder layers most differ in names only."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence, Set

from segmo.passes.runner import PassRecord
from segmo.report.html.changes import Fold, node_lines
from segmo.report.text import node_name

_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_LAYER = re.compile(r"\blayers\.\d+\b")


def fold_alike(folds: Iterable[Fold], names: Set[str]) -> tuple[Fold, ...]:
    """The folds, those that are equal up to names as one.

    Two folds are alike when one becomes the other by renaming nodes one to one and counting decoder layers anew.

    Args:
        folds: in order; each stands where the first that is like it stood.
        names: of all nodes before and after; other words (ops, dtypes) must be the same.
    """
    groups: dict[object, list[Fold]] = {}
    for fold in folds:
        groups.setdefault(_up_to_names(fold, names), []).append(fold)
    return tuple(
        dataclasses.replace(first, likewise=tuple(fold.title for fold in more)) for first, *more in groups.values()
    )


def names_of(record: PassRecord) -> frozenset[str]:
    """Names of the nodes of a graph before and after a pass."""
    texts = dict.fromkeys((record.text_before, record.text_after))
    return frozenset(node_name(line) for text in texts for line in node_lines(text))


def spans(titles: Sequence[str]) -> str:
    """Titles such as "layer 2" in short: "layers 2 to 5, 7". Others as they are."""
    numbers = [int(title.removeprefix("layer ")) for title in titles if title.startswith("layer ")]
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    layers = [f"layer{'s' if len(numbers) > 1 else ''} {', '.join(shown)}"] if numbers else []
    return ", ".join([*layers, *(title for title in titles if not title.startswith("layer "))])


def _up_to_names(fold: Fold, names: Set[str]) -> tuple[tuple[str, str, str], ...]:
    """The rows with each node's name as the number of its first mention, and without the layer's number."""
    first: dict[str, str] = {}

    def anonymous(match: re.Match[str]) -> str:
        word = match[0]
        return first.setdefault(word, f"%{len(first)}") if word in names else word

    def plain(text: str) -> str:
        return _LAYER.sub("layers.N", _WORD.sub(anonymous, text))

    # How much lies unchanged between two changes is no part of either.
    return tuple(
        (row.kind, "", "") if row.kind == "gap" else (row.kind, plain(row.left), plain(row.right)) for row in fold.rows
    )
