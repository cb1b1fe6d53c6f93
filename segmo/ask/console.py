"""What ``segmo run`` prints."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from segmo.ask.ask import FULL, Answer

ORDER = (
    *("hash", "cache", "index", "decode", "scenes", "choose", "process", "encode", "pictures"),
    *("compile", "prefill", "generate"),
)


class Bars:
    """A progress bar for each stage, made when the stage begins."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Moves a stage's bar; threads may call it at the same time."""
        with self._lock:
            if stage not in self._tasks:
                self._tasks[stage] = self.progress.add_task(stage.ljust(24), total=total)
        self.progress.update(self._tasks[stage], completed=done, total=total)


def stage_table(answer: Answer) -> Table:
    """Seconds by stage, beside those of full attention if it was asked for."""
    table = Table(title="Seconds by stage", title_justify="left")
    table.add_column("stage")
    table.add_column("SegMo", justify="right")
    if answer.full is not None:
        table.add_column("full attention", justify="right")
    for stage in [name for name in ORDER if name in answer.seconds]:
        row = [stage, f"{answer.seconds[stage]:.3f}"]
        if answer.full is not None:
            row.append(f"{answer.full.seconds[stage]:.3f}" if stage in ("prefill", "generate") else "")
        table.add_row(*row)
    return table


def sentences(answer: Answer) -> list[str]:
    """The video and the tokens, in words."""
    facts, tokens = answer.facts, answer.tokens
    scenes = len(facts.cuts) + 1
    share = tokens["kept"] / max(1, tokens["video"])
    read = f"{facts.frames} frames sampled at {facts.fps:g} a second"
    prompt, shown, kept = tokens["prompt"], tokens["video"], tokens["kept"]
    lines = [
        f"video: {facts.duration:.2f} s, {scenes} scene{'s' if scenes > 1 else ''}, {read}",
        f"tokens: {prompt:,} in the prompt, {shown:,} of the video, {kept:,} of them kept ({share:.1%})",
    ]
    if answer.cached:
        lines.append(f"from the cache: {', '.join(answer.cached)}")
    return lines + [f"note: {note}" for note in facts.notes]


def as_dict(answer: Answer) -> dict[str, Any]:
    """The answer for the report, JSON-able."""
    full = answer.full
    return {
        "video": str(answer.request.source),
        "question": answer.request.question,
        "answer": answer.text,
        "full_attention": None if full is None else {"answer": full.text, "seconds": dict(full.seconds)},
        "tokens": answer.tokens,
        "duration": answer.facts.duration,
        "frames": answer.facts.frames,
        "fps": answer.facts.fps,
        "cuts": list(answer.facts.cuts),
        "notes": list(answer.facts.notes),
        "cached": list(answer.cached),
        "seconds": {stage: value for stage, value in answer.seconds.items() if not stage.startswith(FULL)},
    }
