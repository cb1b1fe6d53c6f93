"""``segmo warm``: compile a model's graphs ahead, so that what inductor and Triton make lies on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segmo.commands import flags

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

QUESTION = "What is to be seen?"
SIZE = (640, 360)  # width and height of the frames, unless the model says otherwise
SCENES = 4
SEED = 0


def warm(
    model: Annotated[Path | None, typer.Argument(help="folder of a Video LLM (default: the small one that ships)")] = (
        None
    ),
    frames: Annotated[int, typer.Option(min=2, help="frames of the made-up video; any length is served later")] = 32,
    keep: flags.Keep = 0.25,
    segments: flags.Segments = "scene",
    context: flags.Context = 2,
    tails: flags.Tails = 2,
    scorer: flags.Scorer = "embedding",
    layer: flags.Layer = 3,
    balance: flags.Balance = 0.5,
    lowering: flags.Lowering = "auto",
    pipeline: flags.Pipeline = None,
    disable: flags.Disable = None,
    dtype: flags.Dtype = "auto",
    device: flags.Device = None,
) -> None:
    """Fill the caches of compiled code for a model: later processes with the same options find it there.

    Answers about a made-up video, twice, and prints what both took and what lies on disk now. Options, dtype, device
    and versions must be those of the later processes.
    """
    import time

    from rich.console import Console
    from rich.table import Table

    from segmo.ask.ask import Asker
    from segmo.ask.checkpoint import load
    from segmo.ask.settings import Settings
    from segmo.checked import dtype_named
    from segmo.inspection.caches import compiled_folders, held
    from segmo.report.history import last_report

    options = flags.parsed(
        segments,
        disable,
        keep=keep,
        context=context,
        tails=tails,
        scorer=scorer,
        layer=layer,
        balance=balance,
        lowering=lowering,
        pipeline=pipeline,
    )
    if dtype != "auto":
        dtype_named(dtype)
    console = Console(highlight=False)
    loaded = load(model, dtype, device)
    asker = Asker(loaded, Settings(options, max_frames=frames, new_tokens=2))  # the second token has its own graph
    video = moving_pictures(frames, loaded.size or SIZE)
    before, seconds = held(compiled_folders()), []
    for status in ("compiling", "the same again"):
        start = time.perf_counter()
        with console.status(status):
            asker.ask(video, QUESTION)
        seconds.append(time.perf_counter() - start)
    after = held(compiled_folders())

    table = Table()
    table.add_column("two tokens")
    table.add_column("seconds", justify="right")
    table.add_row("the first time, with what was on disk", f"{seconds[0]:.2f}")
    table.add_row("the same again", f"{seconds[1]:.2f}")
    console.print(table)
    where = " and ".join(str(folder) for folder in compiled_folders())
    console.print(f"compiled code on disk before: {before}; now: {after} (in {where})", soft_wrap=True, markup=False)
    graphs = last_report().graphs
    for graph in graphs:
        console.print(f"{graph.kind}: {graph.notes[-1]}", soft_wrap=True, markup=False)
    if not any(graph.by_inductor for graph in graphs):
        place = next(loaded.model.parameters()).device
        console.print(
            f"On {place.type} with lowering={lowering!r}, code is run as torch has it: nothing is compiled that a disk "
            "could hold, and every process traces the model again in its first call (docs/debugging.md).",
            soft_wrap=True,
        )


def moving_pictures(frames: int, size: tuple[int, int]) -> NDArray[uint8]:
    """A video of scenes in which something moves, (frames, height, width, 3): every operator has something to do."""
    import numpy as np

    width, height = size
    random = np.random.default_rng(SEED)
    backgrounds: Any = random.integers(0, 256, (SCENES, 1, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    still = backgrounds.repeat(8, 2).repeat(8, 3)[:, 0, :height, :width]
    video: NDArray[uint8] = still[np.arange(frames) * SCENES // frames].copy()
    side = min(height, width) // 4
    for number, frame in enumerate(video):
        left = number * side // 2 % (width - side)
        frame[side : 2 * side, left : left + side] = 255
    return video
