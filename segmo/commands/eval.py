"""``segmo eval``: is what SegMo keeps enough to answer? Measured with the trained model that ships with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segmo.commands import flags

DEFAULT_OUT = Path("out/eval")


def evaluate(
    out: Annotated[Path, typer.Option(help="folder for results, which a broken run takes up again")] = DEFAULT_OUT,
    split: Annotated[str, typer.Option(help='"validation" or "test"')] = "test",
    difficulty: Annotated[str, typer.Option(help='"easy", "standard", "long", "hard" or "harder"')] = "standard",
    videos: Annotated[int, typer.Option(help="videos, with up to 25 questions each")] = 20,
    keep: Annotated[list[float] | None, typer.Option(help="budgets; give it once for each")] = None,
    segments: flags.Segments = "scene",
) -> None:
    """Answer SceneQA's questions with full attention, CAS, LSP and both, and print the accuracies.

    The small model that ships answers; for "hard" and "harder" with the weights that were trained on such frames.
    """
    from segmo.sceneqa.command import run_evaluation

    run_evaluation(out, split, difficulty, videos, keep or [0.5, 0.25, 0.125, 0.0625], flags.number_or_name(segments))
