"""The picture of an evaluation: accuracy over token budget, a panel for each kind, a line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segmo.sceneqa.questions import CHANCE, KINDS
from segmo.sceneqa.results import OVERALL, Row

OURS = ("#0072B2", "#56B4E9", "#003B5C", "#6A51A3", "#9E9AC8")
OTHERS = ("#D55E00", "#E69F00", "#CC79A7", "#8C6D31", "#B2182B", "#F4A582")
MARKS = "os^DvxP"  # one more than colours: side by side the two give 42 different lines


def _panel(axes: Axes, kind: str, lines: dict[str, list[Row]], full: Row, places: dict[float, int]) -> None:
    ours, others = cycle(OURS), zip(cycle(OTHERS), cycle(MARKS), strict=False)
    for name, rows in lines.items():
        points = [(places[row.keep], row.accuracy[kind]) for row in rows if row.keep in places]
        x = np.array([place for place, _ in points])
        y = np.array([share.value for _, share in points])
        if "CAS" in name:
            colour = next(ours)
            axes.plot(x, y, marker="o", color=colour, linewidth=2.2, markersize=4, label=name, zorder=3)
            band = np.array([share.interval for _, share in points])
            axes.fill_between(x, band[:, 0], band[:, 1], color=colour, alpha=0.12, linewidth=0)
        else:
            colour, mark = next(others)
            axes.plot(x, y, marker=mark, color=colour, linewidth=1.1, markersize=3.5, label=name, linestyle="--")
    axes.axhline(full.accuracy[kind].value, color="#22272B", linewidth=1, label="full attention, all tokens")
    if kind in CHANCE:
        axes.axhline(CHANCE[kind], color="#999999", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xticks(list(places.values()), [f"{100 * keep:g}%" for keep in places])
    axes.set_ylim(0, 1.02)
    axes.set_title(kind, loc="left", fontsize=9)
    axes.tick_params(labelsize=7.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_results(rows: Sequence[Row], title: str) -> Figure:
    """One panel for each kind and one for all.

    Args:
        rows: the first is full attention; methods with several budgets below 1 become lines.
        title: what was measured.
    """
    budgets = sorted({row.keep for row in rows if row.keep < 1}, reverse=True)
    places = {keep: place for place, keep in enumerate(budgets)}
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.keep < 1:
            lines.setdefault(row.name, []).append(row)
    figure = Figure(figsize=(11, 6.6), dpi=150, facecolor="white", layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for axes, kind in zip(panels.flat, (*KINDS, OVERALL), strict=True):
        _panel(axes, kind, lines, rows[0], places)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.supylabel("accuracy", fontsize=9)
    panels[1, 1].set_xlabel("video tokens kept", fontsize=9)  # supxlabel would lie under the legend
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure
