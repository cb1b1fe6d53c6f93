"""Whether the order of a turn changes what is kept: python benchmarks/sceneqa/order.py

The same questions are asked behind the video and in front of it. The small model was not trained to answer the second
kind, so what is counted is the selection: the most relevant scene, and how much of the asked one is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import segmo
from segmo.sceneqa.methods import LSP_PASSES
from segmo.sceneqa.model import build_prompts, load_model, weights_for
from segmo.sceneqa.task import DIFFICULTIES, samples

PER_KIND = {"retrieve": 4, "moment": 4}  # each asks about one scene, which it names


@dataclass(frozen=True)
class Selection:
    """What one prefill kept.

    Attributes:
        kept: places of the kept video tokens among the video's.
        scene: scene that the scorer took for the most relevant one, as its first frame.
        share: share of the asked scene's tokens that is kept.
        asked: whether the most relevant scene holds the asked one's middle frame.
    """

    kept: tuple[int, ...]
    scene: int
    share: float
    asked: bool


def selection(report: Any, asked_F: torch.Tensor) -> Selection:
    """The selection of the last prefill; ``asked_F`` tells the frames of the asked scene."""
    prefill = report.prefill
    video_N = prefill.cell[0] >= 0
    kept_N = torch.zeros_like(video_N)
    kept_N[prefill.kept()] = True
    inside_N = video_N & asked_F[prefill.frame[0].clamp(min=0)]
    best = prefill.scenes()[int(prefill.relevance[0].argmax())]
    frames = asked_F.nonzero()[:, 0]
    middle = int(frames[len(frames) // 2])
    return Selection(
        tuple(kept_N[video_N].nonzero()[:, 0].tolist()),
        best["start_frame"],
        float(kept_N[inside_N].float().mean()),
        best["start_frame"] <= middle < best["end_frame"],
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Ask in both orders and print what agrees."""
    model, processor = load_model(args.model or weights_for(DIFFICULTIES[args.difficulty]))
    table = Table(title=f"{args.videos} validation videos, {sum(PER_KIND.values())} questions each, keep {args.keep:g}")
    for name in ("scorer", "question", "selections a video", "asked scene on top", "of its tokens kept", "as behind"):
        table.add_column(name, justify="left" if name in ("scorer", "question") else "right")
    for scorer in args.scorers:
        segmo.compile(model, keep=args.keep, scorer=scorer, disable=LSP_PASSES)
        behind = asked(model, processor, args, text_first=False)
        before = asked(model, processor, args, text_first=True)
        for name, found in (("behind", behind), ("in front", before)):
            flat = [one for video in found for one in video]
            same = sum(a.scene == b.scene for a, b in zip(flat, (x for v in behind for x in v), strict=True))
            table.add_row(
                scorer,
                name,
                f"{sum(len({one.kept for one in video}) for video in found) / len(found):.1f}",
                f"{sum(one.asked for one in flat)} of {len(flat)}",
                f"{sum(one.share for one in flat) / len(flat):.0%}",
                f"{same} of {len(flat)}",
            )
        segmo.uncompile(model)
    console.print(table)


@torch.no_grad()
def asked(model: Any, processor: Any, args: argparse.Namespace, text_first: bool) -> Sequence[Sequence[Selection]]:
    """The selection of every question, by video."""
    found = []
    for sample in samples("validation", DIFFICULTIES[args.difficulty], args.videos, PER_KIND):
        prompts = build_prompts(model, processor, sample.pictures, sample.questions, text_first=text_first)
        of_video = []
        for number, question in enumerate(sample.questions):
            model(**prompts.only(number).inputs())
            scene_F = torch.as_tensor(sample.scene_F)
            of_video.append(selection(segmo.last_report(), scene_F == question.scenes[0]))
        found.append(of_video)
    return found


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="folder of the trained model (default: the one that ships for the difficulty)"
    )
    parser.add_argument("--difficulty", default="standard", choices=tuple(DIFFICULTIES))
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--keep", type=float, default=0.125)
    parser.add_argument("--scorers", nargs="+", default=["embedding", "attention"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run(args, Console(width=120))


if __name__ == "__main__":
    main()
