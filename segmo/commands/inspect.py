"""``segmo inspect``: what the passes do to a model, from its config alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from segmo.report import GraphReport, Report


def inspect(
    model: Annotated[str, typer.Argument(help="folder with a config.json, or a model_type such as qwen2_5_vl")],
    keep: Annotated[float, typer.Option(help="fraction of the video tokens to keep")] = 0.25,
    segments: Annotated[str, typer.Option(help='"scene", a number, or "equal:N"')] = "scene",
    frames: Annotated[int, typer.Option(min=1, help="frames of the synthetic video")] = 16,
    layers: Annotated[int | None, typer.Option(min=1, help="decoder layers (default: as the config says)")] = None,
    pipeline: Annotated[str | None, typer.Option(help='passes to run, such as "select-tokens{keep=0.5}"')] = None,
    disable: Annotated[list[str] | None, typer.Option(help="switch a pass off; may be given again")] = None,
    stop_after: Annotated[str | None, typer.Option(help="run no pass after this one")] = None,
    graph: Annotated[str | None, typer.Option(help="print the graph: before, after, or after a PASS")] = None,
    diff: Annotated[str | None, typer.Option(help="print what a PASS changed in the graph")] = None,
    number: Annotated[
        int | None, typer.Option(help="the graph that --graph and --diff show (default: prefill)")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write the report here as one HTML page")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="compile the page's kernels for this architecture, such as sm_90")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what each pass does to a model's graphs, and why a pass did not apply. Needs no weights.

    The model is built narrow, with random weights, from the class and the number of layers that its config names.
    """
    from segmo.inspection.run import inspect_model

    options: dict[str, Any] = {
        "keep": keep,
        "segments": int(segments) if segments.isdigit() else segments,
        "pipeline": pipeline,
        "disable": disable or [],
    }
    report = inspect_model(model, options, frames=frames, layers=layers, stop_after=stop_after)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(report.to_html(target or ()), encoding="utf-8")
    texts = _texts(_chosen(report, number), graph, diff)
    if as_json:
        import json

        typer.echo(json.dumps({**report.to_dict(), **texts}, indent=1))
    elif texts:
        typer.echo("\n".join(line for lines in texts.values() for line in lines))
    else:
        from rich.console import Console

        from segmo.inspection.tree import report_tree

        Console(width=None if Console().is_terminal else 200, highlight=False).print(report_tree(report))


def _chosen(report: Report, number: int | None) -> GraphReport:
    from segmo.errors import OptionError

    if number is None:
        kinds = [each.kind for each in report.graphs]
        number = kinds.index("prefill") if "prefill" in kinds else 0
    if not 0 <= number < len(report.graphs):
        raise OptionError(f"there is no graph {number}; graphs were counted from 0 to {len(report.graphs) - 1}")
    return report.graphs[number]


def _texts(chosen: GraphReport, graph: str | None, diff: str | None) -> dict[str, list[str]]:
    from segmo.inspection import text

    found = {}
    if graph is not None:
        found["graph"] = text.readable(text.graph_at(chosen, graph))
    if diff is not None:
        found["diff"] = text.diff(chosen, diff) or [f"{diff} changed nothing"]
    return found
