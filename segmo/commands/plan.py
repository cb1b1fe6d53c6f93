"""``segmo plan``: which rank would compute what, how long that takes, and what imbalance is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from segmo.runtime.partition.plan import Plan

MOST_RANKS = 1 << 12  # a plan of so many takes a minute


def plan(
    segments: Annotated[str, typer.Option(help="kept tokens per segment: 1200,300,5000 or 300*8")] = "3000,500,900*4",
    ranks: Annotated[int, typer.Option(help="number of ranks")] = 2,
    device: Annotated[
        str, typer.Option(help="a100, h100, b200, mi300x, cpu, auto, calibrated; or one per rank: h100,a100")
    ] = "h100",
    model: Annotated[str, typer.Option(help="a preset or a model's folder")] = "qwen2.5-vl-7b",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32")] = "bfloat16",
    sinks: Annotated[int, typer.Option(help="text tokens before the video")] = 20,
    query: Annotated[int, typer.Option(help="text tokens after the video")] = 40,
    context: Annotated[str, typer.Option(help="context tokens per segment, as in --segments; the rest have 0")] = "0",
    keep: Annotated[float, typer.Option(help="share of video tokens kept: what the encoder sees is 1 / keep")] = 0.25,
    encode: Annotated[bool, typer.Option(help="count the vision encoder too")] = False,
    tokens_per_frame: Annotated[int, typer.Option(help="video tokens of a frame, for the encoder")] = 256,
    method: Annotated[str, typer.Option(help="best, balanced, equal or zigzag")] = "best",
    split: Annotated[bool, typer.Option(help="allow cutting inside a long segment")] = True,
    cache: Annotated[str, typer.Option(help="gather or sharded")] = "gather",
    picture: Annotated[Path | None, typer.Option(help="write the timeline here (png, svg or pdf)")] = None,
) -> None:
    """Spread segments over ranks by the cost model: the plan, its timeline, and why imbalance is left."""
    import torch
    from rich.console import Console
    from rich.markup import escape

    from segmo.checked import check_count, dtype_named, file_in
    from segmo.commands.inputs import PICTURES, model_shape, numbers
    from segmo.options import Options
    from segmo.runtime.cost.store import planning_device
    from segmo.runtime.partition.explain import explain
    from segmo.runtime.partition.planner import make_plan
    from segmo.runtime.partition.workload import Workload

    kind = dtype_named(dtype)
    Options(keep=keep)
    check_count("--ranks", ranks, most=MOST_RANKS)
    if picture is not None:
        file_in(picture, PICTURES)
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [name.strip() for name in device.split(",")]
    names = names * ranks if len(names) == 1 else names
    if len(names) != ranks:
        raise typer.BadParameter(f"{len(names)} devices for {ranks} ranks")
    tokens = numbers(segments, "--segments")
    shared = [*numbers(context, "--context"), *[0] * len(tokens)][: len(tokens)]
    encoded = round(sum(tokens) / keep) if encode else 0
    work = Workload(sinks, query, tuple(tokens), tuple(shared), encoded, tokens_per_frame)
    devices = [planning_device(name, here, kind) for name in names]
    console = Console()
    with console.status("planning"):
        made = make_plan(work, model_shape(model, kind.itemsize), devices, method, split, cache)

    console.print(_table(made))
    console.print(f"[bold]{1e3 * made.seconds:.2f} ms[/bold] predicted")
    console.print("critical path: " + " > ".join(made.critical_path))
    for sentence in explain(made):
        console.print(f"- {sentence}", highlight=False, markup=False)
    for source in sorted({one.source for one in devices}):
        console.print(f"[dim]rates: {escape(source)}[/dim]", highlight=False)
    if picture is not None:
        from segmo.report.figures.timeline import draw_timeline

        console.print(f"timeline: {draw_timeline(made, picture)}", markup=False)


def _table(made: Plan) -> Table:
    """One row per rank."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{made.method} plan over {made.world} ranks, cache {made.cache}")
    for column in ("rank", "device", "segments", "tokens", "busy ms", "memory GiB"):
        table.add_column(column, justify="left" if column in ("device", "segments") else "right")
    for rank, run in enumerate(made.pieces):
        load, memory = made.loads[rank], made.memory[rank]
        table.add_row(
            f"{rank}{' *' if rank == made.home else ''}",
            escape(made.devices[rank].name),
            _segments(made, rank) if run else "none",
            f"{load.tokens:,}",
            f"{1e3 * made.busy[rank]:.2f}",
            f"{memory.total / 2**30:.2f}",
        )
    table.caption = "* adds the keys of sinks and question"
    return table


def _segments(made: Plan, rank: int) -> str:
    """Such as ``0-3, 4 [0:512]``: runs of whole segments, and parts of a segment with their tokens."""
    texts: list[str] = []
    run: list[int] = []

    def close() -> None:
        if run:
            texts.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run.clear()

    for piece in made.pieces[rank]:
        if piece.tokens < made.workload.segments[piece.segment]:
            close()
            texts.append(f"{piece.segment} [{piece.start}:{piece.end}]")
            continue
        if run and piece.segment != run[-1] + 1:
            close()
        run.append(piece.segment)
    close()
    return ", ".join(texts)
