"""Options of SegMo that several commands take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

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
    """
    from segmo.errors import OptionError
    from segmo.options import Options

    if options["scorer"] == "external":
        raise OptionError('scorer="external" takes scores from a program; here it is "embedding" or "attention"')
    number = int(segments) if segments.isdigit() else segments
    return Options.parse({"segments": number, "disable": disable or (), **options})
