"""Simulated scaling as a picture: speedup and efficiency over ranks, one line per length of video."""

from __future__ import annotations

from pathlib import Path

from segmo.report.figures.saving import save_figure
from segmo.runtime.partition.simulate import Point


def length_name(seconds: float) -> str:
    """Such as ``10 min`` or ``24 h``."""
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


def draw_scaling(points: list[Point], title: str, file: Path) -> Path:
    """Draws time, efficiency and bytes over the number of ranks; the words below a line's end are its limit.

    Prefills that fit no memory are left out; a length that fits none is named in the title, with the reason.

    Args:
        file: where to write; the suffix decides the format (png, svg, pdf).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    lengths = sorted({point.video_seconds for point in points})
    lost = {length: [p.limit for p in points if p.video_seconds == length][-1] for length in lengths}
    points = [point for point in points if point.fits]
    for point in points:
        lost.pop(point.video_seconds, None)
    colours = matplotlib.colormaps["viridis"]
    ends: list[tuple[str, float]] = []
    for index, seconds in enumerate(lengths):
        line = [point for point in points if point.video_seconds == seconds]
        if not line:
            continue
        style = {
            "color": colours(0.9 * index / max(len(lengths) - 1, 1)),
            "marker": "o",
            "markersize": 3,
            "label": length_name(seconds),
        }
        ranks = [point.ranks for point in line]
        left.plot(ranks, [point.seconds for point in line], **style)
        middle.plot(ranks, [point.efficiency for point in line], **style)
        sent = [point for point in line if point.bytes_received]
        right.plot([point.ranks for point in sent], [point.bytes_received / 1e6 for point in sent], **style)
        last = line[-1]
        # A line that ends close above one with the same limit shares its word.
        if not any(limit == last.limit and last.seconds < 1.5 * below for limit, below in ends):
            place = {"xytext": (0, -11), "textcoords": "offset points", "ha": "right"}
            left.annotate(last.limit, (last.ranks, last.seconds), fontsize=7, **place)
        ends.append((last.limit, last.seconds))
    names = ("seconds to the first token", "efficiency", "MB received per rank")
    for axes, name in zip((left, middle, right), names, strict=True):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("ranks")
        axes.set_title(name, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
    if ends:
        left.set_yscale("log")
    if right.lines and any(len(line.get_xdata()) for line in right.lines):  # a rank alone receives nothing
        right.set_yscale("log")
    middle.set_ylim(0, 1.1)
    if middle.lines:
        middle.legend(title="video", fontsize=7)
    for length, limit in lost.items():
        title += f"; {length_name(length)} of video fits no number of ranks ({limit})"
    figure.suptitle(f"SIMULATED, nothing was run: {title}", fontsize=11)
    return save_figure(figure, file)
