"""``segmo simulate``: the cost model replayed for many ranks and lengths of video. Nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RANKS = "1,2,4,8,16,32,64,128,256,512,1024"
MINUTES = "1,10,60,360,1440"
WEEK = 7 * 24 * 60
MOST_RANKS = 1 << 16


def simulate(
    model: Annotated[str, typer.Option(help="a preset or a model's folder")] = "qwen2.5-vl-7b",
    device: Annotated[str, typer.Option(help="a100, h100, b200, mi300x, cpu or calibrated")] = "h100",
    ranks: Annotated[str, typer.Option(help="numbers of ranks")] = RANKS,
    minutes: Annotated[str, typer.Option(help="lengths of video in minutes")] = MINUTES,
    keep: Annotated[float, typer.Option(help="share of the video tokens that is kept")] = 0.25,
    tokens_per_frame: Annotated[int, typer.Option(help="video tokens of a sampled frame")] = 256,
    fps: Annotated[float, typer.Option(help="sampled frames per second")] = 1.0,
    cache: Annotated[str, typer.Option(help="gather or sharded")] = "sharded",
    picture: Annotated[Path, typer.Option(help="write the picture here (png, svg or pdf)")] = Path("out/simulated.png"),
) -> None:
    """Predict time, efficiency and bytes per number of ranks and length of video, and what limits them."""
    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from segmo.checked import file_in
    from segmo.commands.inputs import PICTURES, model_shape, numbers
    from segmo.report.figures.scaling import draw_scaling, length_name
    from segmo.runtime.cost.device import GIB
    from segmo.runtime.cost.store import planning_device
    from segmo.runtime.partition.planner import check_names, replicated_memory
    from segmo.runtime.partition.simulate import Video
    from segmo.runtime.partition.simulate import simulate as predict

    rates = planning_device(device, torch.device("cpu"), torch.bfloat16)
    video = Video(tokens_per_frame=tokens_per_frame, frames_per_second=fps, keep=keep)
    file_in(picture, PICTURES)
    lengths = [60.0 * minute for minute in numbers(minutes, "--minutes", 1, WEEK)]
    counts = numbers(ranks, "--ranks", 1, MOST_RANKS)
    check_names("best", cache)
    console = Console()
    with console.status("simulating"):
        points = predict(model_shape(model), rates, counts, lengths, video, cache)

    table = Table(title=escape(f"SIMULATED: {model} on {rates.name}, keep {keep:g}, cache {cache}"))
    for column in ("video", "ranks", "seconds", "speedup", "efficiency", "MB received", "limited by"):
        table.add_column(column, justify="left" if column in ("video", "limited by") else "right")
    for point in points:
        figures = ["-"] * 4
        if point.fits:
            figures = [f"{point.seconds:.3g}", f"{point.speedup:.1f}", f"{point.efficiency:.2f}"]
            figures.append(f"{point.bytes_received / 1e6:,.1f}")
        table.add_row(length_name(point.video_seconds), str(point.ranks), *figures, point.limit)
    console.print(table)
    for length in lengths:
        if not any(point.fits for point in points if point.video_seconds == length):
            need = replicated_memory(video.workload(length), model_shape(model), cache)
            console.print(
                f"{length_name(length)}: none of these numbers of ranks holds it. Every rank holds "
                f"{need.total / GIB:.1f} GiB whatever its segments ({need.describe()}) and has "
                f"{rates.memory_bytes / GIB:.1f}; sample fewer frames (--fps) or tokens (--tokens-per-frame).",
                highlight=False,
            )
    console.print(f"[dim]rates: {escape(rates.source)}; nothing was run[/dim]", highlight=False)
    console.print(f"picture: {draw_scaling(points, f'{model} on {rates.name}, keep {keep:g}', picture)}", markup=False)
