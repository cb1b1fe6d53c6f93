"""The figure of docs/how-it-decides.md, from a real prompt: python benchmarks/sceneqa/explain.py --out docs/decides.png

One question about one video of SceneQA's validation split, answered by the shipped model through SegMo. Above: the
first frame of each scene, of every token its place in the order and how far it was from what was taken before it, and
what was kept. Below: relevance and dynamics of each scene, and how many tokens it keeps.

Legend: S scenes, C cells of a frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from untrained import MERGE

import segmo
from segmo.demo.strip import dim_dropped
from segmo.demo.style import DROPPED, FAINT, INK, KEPT, OUTLINE
from segmo.runtime.scenes import head_frames
from segmo.runtime.selection import scene_shares
from segmo.sceneqa.model import build_prompts, load_model
from segmo.sceneqa.render import PICTURES
from segmo.sceneqa.task import DIFFICULTIES, Sample, make_sample


def ask(index: int, keep: float) -> tuple[Sample, str, dict[str, Any]]:
    """A video, a question about it with right and given answer, and what was decided: see :func:`_decided`."""
    model, processor = load_model()
    sample = make_sample("validation", DIFFICULTIES["easy"], index, {"retrieve": 1})
    prompts = build_prompts(model, processor, sample.pictures, sample.questions, index)
    segmo.compile(model, keep=keep)
    with torch.no_grad():
        logits = model(**prompts.inputs()).logits[0, -1]
    question = sample.questions[0]
    given = processor.tokenizer.decode([int(logits.argmax())])
    grid = tuple(int(side) // MERGE for side in prompts.grid[0, 1:])
    return sample, f'"{question.text}?"  right: {question.answer}, answered: {given}', _decided(grid)


def _decided(grid: tuple[int, ...]) -> dict[str, Any]:
    """Of the last prefill: first frame, shares and kept tokens of each scene, novelty and kept flags of each frame."""
    prefill = segmo.last_report().prefill
    if prefill is None or prefill.novelty is None or prefill.index is None or prefill.relevance is None:
        raise SystemExit("SegMo did not select tokens; see segmo.last_report()")
    inside = prefill.cell[0] >= 0
    frame, scene = prefill.frame[0, inside], prefill.scene[0, inside]
    novelty = prefill.novelty[0, inside]
    kept_N = torch.zeros_like(inside)
    kept_N[prefill.index[0]] = True
    kept, scenes = kept_N[inside], int(scene[-1]) + 1
    dynamics = torch.zeros(scenes).index_add_(0, scene, novelty)
    relevance = prefill.relevance[0, :scenes]
    return {
        "head": head_frames(frame, scene).tolist(),
        "novelty": novelty.view(-1, *grid).numpy(),
        "kept": kept.view(-1, *grid).numpy(),
        "relevance": scene_shares(relevance, dynamics, 1.0).tolist(),
        "dynamics": scene_shares(relevance, dynamics, 0.0).tolist(),
        "budget": torch.bincount(scene[kept], minlength=scenes).tolist(),
    }


def _draw_first(axes: Axes, picture: NDArray[np.uint8], novelty: NDArray[Any], kept: NDArray[np.bool_]) -> None:
    """A scene's first frame; each cell's novelty, and its place in the order by novelty."""
    rows, columns = kept.shape
    axes.imshow(dim_dropped(picture, kept), extent=(0, columns, rows, 0), interpolation="nearest", aspect="equal")
    order = np.argsort(np.argsort(-novelty.ravel(), kind="stable"), kind="stable").reshape(kept.shape) + 1
    for row in range(rows):
        for column in range(columns):
            if kept[row, column]:
                axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=OUTLINE, linewidth=1.6))
            text = f"{novelty[row, column]:.2f}"
            colour = "white" if kept[row, column] else DROPPED
            look: dict[str, Any] = {
                "color": colour,
                "fontsize": 6,
                "path_effects": [withStroke(linewidth=1.5, foreground=INK)],
            }
            axes.text(column + 0.06, row + 0.24, str(order[row, column]), weight="bold", **look)
            axes.text(column + 0.94, row + 0.92, text, ha="right", **look)
    axes.set_axis_off()


def draw(sample: Sample, title: str, decided: Mapping[str, Any]) -> Figure:
    """The whole figure."""
    scenes: Sequence[int] = decided["head"]
    figure = Figure(figsize=(1.5 * len(scenes), 4.2), layout="constrained")
    grid = figure.add_gridspec(2, len(scenes), height_ratios=[1, 1.5])
    for number, head in enumerate(scenes):
        axes = figure.add_subplot(grid[0, number])
        picture = sample.pictures[head * PICTURES].repeat(4, axis=0).repeat(4, axis=1)
        _draw_first(axes, picture, decided["novelty"][head], decided["kept"][head])
        axes.set_title(f"scene {number + 1}", fontsize=8, color=INK)
    axes = figure.add_subplot(grid[1, :])
    place = np.arange(len(scenes))
    axes.bar(place - 0.2, decided["relevance"], 0.36, color=KEPT, label="relevance (softmax over scenes)")
    axes.bar(place + 0.2, decided["dynamics"], 0.36, color=OUTLINE, label="dynamics (novelty of all its tokens)")
    for number, budget in enumerate(decided["budget"]):
        high = max(decided["relevance"][number], decided["dynamics"][number])
        axes.text(number, high + 0.01, f"{budget} kept", ha="center", fontsize=8, color=INK)
    axes.set_xticks(place, [f"{number + 1}" for number in place])
    axes.set_ylabel("share of the budget", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, colors=FAINT)
    axes.legend(fontsize=8, frameon=False)
    axes.margins(y=0.15)
    figure.suptitle(title, fontsize=9, color=INK)
    return figure


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/decides.png"))
    parser.add_argument("--index", type=int, default=0, help="video of the validation split")
    parser.add_argument("--keep", type=float, default=0.125)
    args = parser.parse_args()
    matplotlib.use("agg")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(*ask(args.index, args.keep)).savefig(args.out, dpi=150)


if __name__ == "__main__":
    main()
