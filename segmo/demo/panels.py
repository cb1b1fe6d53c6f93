"""The picture's lower part: tokens kept over time, the budget of each scene, and its relevance.

Legend: F frames of the language model (each one temporal patch).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from segmo.demo.style import CUT, DROPPED, FAINT, INK, KEPT, OUTLINE, clock
from segmo.report.storyboard import Scene

MOST_LABELS = 40  # more scenes than this get no numbers of their own


def _title(axes: Axes, text: str, pad: float) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, color=INK, pad=pad)


def _bare(axes: Axes) -> None:
    """No frame but the bottom line, and small quiet labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, labelsize=7.5, colors=FAINT)


def draw_timeline(
    axes: Axes, scenes: Sequence[Scene], share: NDArray[np.float64], step: float, cuts: Sequence[float]
) -> None:
    """Share of each frame's tokens that is kept, over time, with scene starts and the true cuts."""
    times = np.arange(len(share)) * step
    axes.bar(times, np.ones_like(share), step, align="edge", color=DROPPED, linewidth=0)
    axes.bar(times, share, step, align="edge", color=KEPT, linewidth=0)
    for number, scene in enumerate(scenes, start=1):
        start, end = scene["start_frame"] * step, scene["end_frame"] * step
        if number > 1:
            axes.axvline(start, color="white", linewidth=1.6)
        if end - start > 0.012 * len(share) * step:
            axes.text((start + end) / 2, 1.06, str(number), ha="center", fontsize=7, color=INK)
    if len(cuts):
        axes.scatter(cuts, [-0.06] * len(cuts), marker="^", s=16, color=CUT, clip_on=False, zorder=3, linewidths=0)
    axes.set_xlim(0, len(share) * step)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    axes.tick_params(axis="x", pad=7)
    _bare(axes)
    _title(axes, "Kept in each frame (blue) over time. White lines: scenes found; triangles: true cuts", 14)


def draw_budgets(axes: Axes, scenes: Sequence[Scene]) -> None:
    """Tokens of each scene and how many of them are kept."""
    places = np.arange(len(scenes))
    tokens = [scene["tokens"] for scene in scenes]
    kept = [scene["kept"] for scene in scenes]
    axes.bar(places, tokens, 0.8, color=DROPPED, linewidth=0)
    axes.bar(places, kept, 0.8, color=KEPT, linewidth=0)
    small = len(scenes) > 20
    labels = zip(places, tokens, kept, strict=True) if len(scenes) <= MOST_LABELS else ()
    for place, total, part in labels:
        axes.annotate(
            f"{part}\n/{total}" if small else f"{part} / {total}",
            (place, total),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=5.5 if small else 7,
            color=INK,
            linespacing=0.95,
        )
    axes.set_xlim(-0.5, len(scenes) - 0.5)
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    _bare(axes)
    _title(axes, "Kept (blue) / tokens of each scene", 11)


def draw_relevance(axes: Axes, scenes: Sequence[Scene]) -> None:
    """Relevance of each scene, from the lowest to the highest one."""
    value = np.array([scene["relevance"] for scene in scenes], dtype=float)
    places = np.arange(len(scenes))
    low, high = float(value.min()), float(value.max())
    margin = 0.08 * (high - low) or 1.0
    axes.vlines(places, low - margin, value, color=OUTLINE, linewidth=2)
    axes.scatter(places, value, s=18, color=OUTLINE, zorder=3, linewidths=0)
    axes.set_xlim(-0.5, len(scenes) - 0.5)
    axes.set_ylim(low - margin, high + 2 * margin)
    every = 1 + (len(scenes) - 1) // MOST_LABELS
    axes.set_xticks(places[::every], [str(place + 1) for place in places[::every]])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2))
    _bare(axes)
    _title(axes, "Relevance of each scene to the question", 5)
