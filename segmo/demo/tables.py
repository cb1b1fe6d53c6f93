"""What the demo prints: the four timings, and the scenes found next to the true cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from segmo.demo.edit import Shot, cut_times
from segmo.demo.prefill import Timing
from segmo.demo.style import clock


def timing_table(timings: Sequence[Timing]) -> Table:
    """One row per way; the speedup is over the first."""
    table = Table(title="Prefill: from the prompt to the first new token, video features given", title_justify="left")
    table.add_column("way", style="bold")
    table.add_column("what is computed")
    for name in ("prefill", "speedup", "prompt", "kept", "compile"):
        table.add_column(name, justify="right")
    for timing in timings:
        table.add_row(
            timing.way.name,
            timing.way.what,
            f"{timing.seconds:.2f} s",
            f"{timings[0].seconds / timing.seconds:.1f}x",
            f"{timing.prompt:,}",
            f"{timing.kept:,}",
            "" if timing.way.options is None else f"{timing.compile_seconds:.1f} s",
        )
    return table


def match_cuts(starts: Sequence[float], cuts: Sequence[float], tolerance: float) -> dict[float, float]:
    """True cut -> the scene start that found it: the nearest one within ``tolerance``, each start used once.

    Args:
        starts: seconds at which the scenes found start, without the first.
        cuts: seconds at which the video is cut.
        tolerance: in seconds.
    """
    pairs = sorted((abs(start - cut), cut, start) for cut in cuts for start in starts)
    found: dict[float, float] = {}
    for distance, cut, start in pairs:
        if distance <= tolerance and cut not in found and start not in found.values():
            found[cut] = start
    return found


def _shown(shots: Sequence[Shot], start: float, end: float) -> str:
    """The names of the shots that are on screen between two times."""
    begin = [0.0, *cut_times(tuple(shots))]
    finish = [*begin[1:], float("inf")]
    return ", ".join(shot.name for shot, b, f in zip(shots, begin, finish, strict=True) if b < end and f > start)


def scene_table(
    scenes: Sequence[Mapping[str, Any]], shots: Sequence[Shot], seconds_per_frame: float
) -> tuple[Table, str]:
    """The scenes found, what they really show, and one sentence on how many true cuts were found.

    Args:
        scenes: ``segmo.last_report().to_dict()["scenes"]``.
        shots: the cut list that the video was made from.
        seconds_per_frame: length of one frame of the language model.
    """
    cuts = cut_times(tuple(shots))
    starts = [scene["start_frame"] * seconds_per_frame for scene in scenes[1:]]
    found = match_cuts(starts, cuts, seconds_per_frame)
    table = Table(title="Scenes found, against the true cuts", title_justify="left")
    for name in ("scene", "frames", "time"):
        table.add_column(name, justify="right")
    table.add_column("starts at a true cut")
    table.add_column("what it shows")
    for name in ("tokens", "kept", "", "relevance"):
        table.add_column(name, justify="right")
    for number, scene in enumerate(scenes, start=1):
        start, end = scene["start_frame"] * seconds_per_frame, scene["end_frame"] * seconds_per_frame
        cut = next((cut for cut, at in found.items() if at == start), None)
        table.add_row(
            str(number),
            f"{scene['start_frame']}-{scene['end_frame'] - 1}",
            f"{clock(start)}-{clock(end)}",
            "" if number == 1 else "no" if cut is None else f"yes, {clock(cut)}",
            _shown(shots, start, end),
            f"{scene['tokens']:,}",
            f"{scene['kept']:,}",
            f"{scene['kept'] / scene['tokens']:.0%}",
            f"{scene['relevance']:.4f}",
        )
    missed = ", ".join(clock(cut) for cut in cuts if cut not in found)
    summary = (
        f"{len(found)} of {len(cuts)} true cuts found to within one frame ({seconds_per_frame:g} s)"
        + (f", missed at {missed}" if missed else "")
        + f"; {len(starts) - len(found)} scene starts inside a shot."
    )
    return table, summary
