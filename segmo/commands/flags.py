"""Options of SegMo that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[Path | None, typer.Option(help="folder of a Video LLM (default: the small one that ships)")]
Fps = Annotated[float | None, typer.Option(help="frames to sample per second (default: the model's)")]
MaxFrames = Annotated[int, typer.Option(help="frames of a video at most")]
NewTokens = Annotated[int, typer.Option(help="tokens of an answer at most")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32")]
Device = Annotated[str | None, typer.Option(help="such as cuda (default: a GPU if there is one)")]
Keep = Annotated[float, typer.Option(help="fraction of the video tokens to keep")]
Segments = Annotated[str, typer.Option(help='"scene", a number, or "equal:N"')]
Context = Annotated[int, typer.Option(help="scenes whose head frames every later token may see")]
Tails = Annotated[int, typer.Option(help="last kept frames of each segment that every later token may see")]
Scorer = Annotated[str, typer.Option(help='relevance of scenes: "embedding" or "attention"')]
Layer = Annotated[int, typer.Option(help="decoder layer of the attention scorer")]
Balance = Annotated[float, typer.Option(help="relevance against novelty in a scene's share")]
Lowering = Annotated[str, typer.Option(help='"auto", "flash", "reference" or "inductor"')]
Pipeline = Annotated[str | None, typer.Option(help="passes to run, in order")]
Disable = Annotated[list[str] | None, typer.Option(help="switch a pass off; may be given again")]


def parsed(segments: str, disable: list[str] | None, **options: Any) -> Any:
    """The options, once segments and switched-off passes are brought into their form.

    Raises:
        OptionError: a value is not allowed, or scores would have to come from a program.
        PipelineError: an unknown pass, or SegMo's own in another order.
    """
    from segmo.errors import OptionError
    from segmo.options import Options
    from segmo.passes.pipeline import build_pipeline, check_order

    if options["scorer"] == "external":
        raise OptionError('scorer="external" takes scores from a program; here it is "embedding" or "attention"')
    found = Options.parse({"segments": number_or_name(segments), "disable": disable or (), **options})
    check_order(build_pipeline(found))  # now, and not after a model has been loaded
    return found


def number_or_name(segments: str) -> int | str:
    """The option ``segments`` as it stands on a command line: a number, or the name of a rule."""
    return int(segments) if segments.isdecimal() else segments
