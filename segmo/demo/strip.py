"""The picture's upper part: frames of every scene, with the tokens that were dropped dimmed.

Legend: F frames of the language model (each one temporal patch).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from segmo.demo.style import FAINT, INK, OUTLINE, clock
from segmo.report.storyboard import Scene

COLUMNS = 6
WIDTH_GAP, HEIGHT_GAP = 0.05, 0.19  # inches between frames


def dim_dropped(frame: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The frame with its dropped cells in dark grey and its kept cells as they are.

    Args:
        frame: (height, width, 3) uint8.
        kept: (cells_h, cells_w) bool.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = frame.shape[:2]
    rows = np.arange(height) * kept.shape[0] // height
    columns = np.arange(width) * kept.shape[1] // width
    bright = kept[rows[:, None], columns[None, :], None]
    grey = frame.mean(axis=-1, keepdims=True) * 0.28 + 12
    return np.where(bright, frame, grey).astype(np.uint8)


def kept_outline(kept: NDArray[np.bool_]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The sides of cells between a kept and a dropped one, as ((x, y), (x, y)) in cells."""
    down = [((x, y + 1), (x + 1, y + 1)) for y, x in np.argwhere(kept[1:] != kept[:-1]).tolist()]
    across = [((x + 1, y), (x + 1, y + 1)) for y, x in np.argwhere(kept[:, 1:] != kept[:, :-1]).tolist()]
    return down + across


def _draw_frame(axes: Axes, frame: NDArray[np.uint8], kept: NDArray[np.bool_], label: str, note: str) -> None:
    rows, columns = kept.shape
    axes.imshow(dim_dropped(frame, kept), extent=(0, columns, rows, 0), interpolation="lanczos", aspect="auto")
    axes.add_collection(LineCollection(kept_outline(kept), colors=OUTLINE, linewidths=1.0), autolim=False)
    axes.set_axis_off()
    axes.set_title(label, loc="left", fontsize=7.5, color=INK, pad=2.5)
    axes.set_title(note, loc="right", fontsize=7.5, color=FAINT, pad=2.5)


def strip_height(count: int, width: float, aspect: float) -> float:
    """Height in inches of ``count`` frames in a strip of ``width`` inches.

    Args:
        aspect: height / width of a frame.
    """
    rows = -(-count // COLUMNS)
    return rows * _frame_width(width) * aspect + (rows - 1) * HEIGHT_GAP


def _frame_width(width: float) -> float:
    return (width - (COLUMNS - 1) * WIDTH_GAP) / COLUMNS


def draw_strip(
    figure: Figure,
    box: tuple[float, float, float, float],
    chosen: Sequence[int],
    frames: NDArray[np.uint8],
    scenes: Sequence[Scene],
    kept: NDArray[np.bool_],
    seconds_per_frame: float,
) -> None:
    """Draw the chosen frames, each with its time, its scene and its number of kept tokens.

    Args:
        box: left, bottom, right and top of the strip, in parts of the figure.
        chosen: from :func:`segmo.report.storyboard.choose_frames`.
        frames: (F, height, width, 3) uint8.
        scenes: in order, covering all frames.
        kept: (F, cells_h, cells_w) bool.
        seconds_per_frame: length of one frame.
    """
    left, bottom, right, top = box
    frame_width = _frame_width((right - left) * figure.get_figwidth())
    frame_height = frame_width * frames.shape[1] / frames.shape[2]
    grid = GridSpec(
        -(-len(chosen) // COLUMNS),
        COLUMNS,
        figure,
        left,
        bottom,
        right,
        top,
        wspace=WIDTH_GAP / frame_width,
        hspace=HEIGHT_GAP / frame_height,
    )
    scene_of = np.repeat(np.arange(len(scenes)), [s["end_frame"] - s["start_frame"] for s in scenes])
    for place, frame in enumerate(chosen):
        axes = figure.add_subplot(grid[divmod(place, COLUMNS)])
        label = f"{clock(frame * seconds_per_frame)}  scene {scene_of[frame] + 1}"
        note = f"{int(kept[frame].sum())} / {kept[frame].size}"
        _draw_frame(axes, frames[frame], kept[frame], label, note)
