"""``segmo demo``: real clips through a Video LLM, with and without SegMo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segmo.commands import flags

DEFAULT_OUT = Path("out/demo")


def demo(
    out: Annotated[Path, typer.Option(help="folder for the video and the picture")] = DEFAULT_OUT,
    keep: flags.Keep = 0.25,
    segments: flags.Segments = "scene",
    seconds: Annotated[int, typer.Option(help="length of the video")] = 180,
    question: Annotated[str | None, typer.Option(help="what is asked about the video")] = None,
) -> None:
    """Run a video through a Video LLM four ways (eager, LSP, CAS, both) and show what was kept."""
    from segmo.demo.main import QUESTION, run_demo

    run_demo(out, keep, flags.number_or_name(segments), seconds, question or QUESTION)
