"""``segmo inspect``: what the passes do to a model, from its config alone or with its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segmo.commands import flags

if TYPE_CHECKING:
    from segmo.inspection.run import Subject
    from segmo.report.record import GraphReport
from segmo.report.report import Report


def inspect(
    model: Annotated[str, typer.Argument(help="folder with a config.json, or a model_type such as qwen2_5_vl")],
    keep: flags.Keep = 0.25,
    segments: flags.Segments = "scene",
    scorer: Annotated[str, typer.Option(help="embedding or attention")] = "embedding",
    frames: Annotated[int, typer.Option(min=1, help="frames of the synthetic video")] = 16,
    video: Annotated[Path | None, typer.Option(help="a video file in place of the synthetic video")] = None,
    question: Annotated[str, typer.Option(help="what is asked about the video")] = "",
    fps: Annotated[float, typer.Option(help="frames per second that are taken from the file")] = 1.0,
    weights: Annotated[bool, typer.Option("--weights", help="load the folder's weights and processor")] = False,
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
    ranks: Annotated[int, typer.Option(min=1, help="plan the prompt for so many ranks on the page")] = 1,
    device: Annotated[str, typer.Option(help="the ranks' devices: a100, h100, b200, mi300x, cpu, auto")] = "auto",
    bisect: Annotated[
        bool, typer.Option("--bisect", help="find the first pass after which the result leaves the tolerance")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="of --bisect, relative to the largest logit")] = 1e-3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what each pass does to a model's graphs, and why a pass did not apply. Needs no weights.

    Unless --weights is given, the model is built narrow, with random weights, from the class and the number of layers
    that its config names. Where --graph or --diff alone are asked for, the prefill is rewritten and never run.
    """
    from segmo.checked import file_in
    from segmo.errors import OptionError
    from segmo.inspection.run import capture_subject, inspect_subject, subject, with_stop
    from segmo.runtime.kernels.targets import gpu_target

    if html is not None:
        file_in(html)
        for each in target or ():
            gpu_target(each)
    elif target or ranks > 1:
        raise OptionError("--target and --ranks are shown on the page; say where it is written (--html)")
    if bisect and (html or diff or graph):
        raise OptionError("--bisect prints a table of its own; leave out --html, --diff and --graph")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise OptionError(f"--tolerance is {tolerance}; it must be a number >= 0")
    options: dict[str, Any] = {
        "keep": keep,
        "segments": flags.number_or_name(segments),
        "scorer": scorer,
        "pipeline": pipeline,
        "disable": disable or [],
    }
    options = with_stop(options, stop_after)
    given = subject(model, frames=frames, layers=layers, video=video, question=question, fps=fps, weights=weights)
    if bisect:
        _print_bisection(given, options, tolerance, as_json)
        return
    # A decode graph comes after a prefill that ran, and so does what a page or the JSON says of tokens and scenes.
    graph_alone = (graph or diff) and number is None and html is None and not as_json
    report = (capture_subject if graph_alone else inspect_subject)(given, options)
    if html is not None:
        _write_page(report, given, html, target or [], ranks, device)
    texts = _texts(_chosen(report, number), graph, diff)
    if as_json:
        import json

        typer.echo(json.dumps({**report.to_dict(), **texts}, indent=1))
    elif texts:
        typer.echo("\n".join(line for lines in texts.values() for line in lines))
    else:
        from segmo.inspection.tree import report_tree

        _print(report_tree(report))
        if html is not None:
            typer.echo(f"page: {html}")


def _print(what: Any) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 200, highlight=False).print(what)


def _write_page(report: Report, given: Subject, file: Path, targets: list[str], ranks: int, device: str) -> None:
    if ranks > 1:
        from segmo.inspection.ranks import plan_for

        report.plan = plan_for(report, given.model.config, ranks, device)
    page = report.to_html(targets)
    file.write_text(page, encoding="utf-8")


def _print_bisection(given: Subject, options: dict[str, Any], tolerance: float, as_json: bool) -> None:
    from segmo.inspection.bisect import bisect

    steps = bisect(given, options, tolerance)
    if as_json:
        import dataclasses
        import json

        typer.echo(json.dumps([dataclasses.asdict(step) for step in steps], indent=1))
        return
    from segmo.inspection.tree import bisection_table

    _print(bisection_table(steps, tolerance))


def _chosen(report: Report, number: int | None) -> GraphReport:
    from segmo.errors import OptionError

    if number is None:
        kinds = [each.kind for each in report.graphs]
        number = kinds.index("prefill") if "prefill" in kinds else 0
    if not 0 <= number < len(report.graphs):
        raise OptionError(f"there is no graph {number}; graphs were counted from 0 to {len(report.graphs) - 1}")
    return report.graphs[number]


def _texts(chosen: GraphReport, graph: str | None, diff: str | None) -> dict[str, list[str]]:
    from segmo.passes.pipeline import own_name
    from segmo.report import text

    found = {}
    if graph is not None:
        found["graph"] = text.readable(text.graph_at(chosen, own_name(graph)))
    if diff is not None:
        found["diff"] = text.diff(chosen, own_name(diff)) or [f"{diff} changed nothing"]
    return found
