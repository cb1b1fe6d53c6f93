"""``segmo demo``: real clips through a Video LLM, with and without SegMo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_OUT = Path("out/demo")


def demo(
    out: Annotated[Path, typer.Option(help="folder for the video and the picture")] = DEFAULT_OUT,
    keep: Annotated[float, typer.Option(help="fraction of the video tokens to keep")] = 0.25,
    segments: Annotated[str, typer.Option(help='"scene", a number, or "equal:N"')] = "scene",
    seconds: Annotated[int, typer.Option(help="length of the video")] = 180,
    question: Annotated[str | None, typer.Option(help="what is asked about the video")] = None,
) -> None:
    """Run a video through a Video LLM four ways (eager, LSP, CAS, both) and show what was kept."""
    from segmo.demo.main import QUESTION, run_demo

    number = int(segments) if segments.isdigit() else segments
    run_demo(out, keep, number, seconds, question or QUESTION)
