"""One picture of what was kept: frames of every scene with dropped tokens dimmed, and each scene's budget.

Legend: F frames of the language model (each one temporal patch).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from segmo.demo.panels import draw_budgets, draw_relevance, draw_timeline
from segmo.demo.strip import draw_strip, strip_height
from segmo.demo.style import FAINT, INK
from segmo.report.storyboard import Scene, choose_frames

WIDTH_PIXELS, DPI = 1600, 160
MOST_FRAMES = 24
HEAD, PANELS = 0.92, 3.58  # inches above and below the strip of frames
EDGE = 0.012  # margin on both sides, in parts of the width
LEGEND = "In colour: kept. Dark: dropped, as it repeats the frame before. Numbers: tokens kept / tokens."


def draw_kept(
    frames: NDArray[np.uint8],
    scenes: Sequence[Scene],
    kept: NDArray[np.bool_],
    *,
    seconds_per_frame: float,
    cuts: Sequence[float] = (),
    caption: str = "",
) -> Figure:
    """The picture.

    Args:
        frames: (F, height, width, 3) uint8, one for each frame of the language model.
        scenes: ``segmo.last_report().to_dict()["scenes"]``: in order, covering all frames, each with
            ``start_frame``, ``end_frame`` (exclusive), ``tokens``, ``kept`` and ``relevance``.
        kept: (F, cells_h, cells_w) bool, True where a token was kept.
        seconds_per_frame: length of one frame, for the time axis.
        cuts: seconds at which the video is really cut.
        caption: a second line under the title.

    Returns:
        A figure 1600 pixels wide; :func:`save_picture` writes it.
    """
    chosen = choose_frames(scenes, MOST_FRAMES)
    width = WIDTH_PIXELS / DPI
    strip = strip_height(len(chosen), (1 - 2 * EDGE) * width, frames.shape[1] / frames.shape[2])
    height = HEAD + strip + PANELS
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

    amount = f"{int(kept.sum()):,} of {kept.size:,} video tokens kept ({kept.mean():.0%})"
    title = f"{amount}, {len(scenes)} scenes found"
    figure.text(EDGE, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", color=INK)
    figure.text(EDGE, 1 - 0.48 / height, caption, fontsize=8, color=FAINT)
    figure.text(EDGE, 1 - 0.66 / height, LEGEND, fontsize=8, color=FAINT)

    box = (EDGE, PANELS / height, 1 - EDGE, 1 - HEAD / height)
    draw_strip(figure, box, chosen, frames, scenes, kept, seconds_per_frame)

    bottom, top = 0.25 / height, (PANELS - 0.43) / height
    panels = GridSpec(3, 1, figure, 0.06, bottom, 0.982, top, height_ratios=(0.65, 1, 0.5), hspace=0.85)
    kept_share = kept.reshape(len(kept), -1).mean(axis=1)
    draw_timeline(figure.add_subplot(panels[0]), scenes, kept_share, seconds_per_frame, cuts)
    draw_budgets(figure.add_subplot(panels[1]), scenes)
    draw_relevance(figure.add_subplot(panels[2]), scenes)
    return figure


def save_picture(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, making the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path
