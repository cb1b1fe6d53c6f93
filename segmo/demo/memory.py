"""The demo's memory: a video watched once and asked five questions, which a prefill each would cost otherwise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

import segmo
from segmo.demo.prefill import Prompt, Timing
from segmo.demo.processor import ids_behind
from segmo.sceneqa.render import PICTURES
from segmo.sceneqa.task import Sample

QUESTIONS = (
    "When does the taxi come into view?",
    "Who is in it?",
    "What is the man on the bicycle waiting for?",
    "How many people walk past the parked bicycle?",
    "Which animal wakes up, and what does it do then?",
)


@dataclass(frozen=True)
class Remembered:
    """A memory, measured.

    Attributes:
        watching: seconds until the video was watched, its features given.
        questions: seconds from each question to the first token of its answer.
        megabytes: of the memory.
    """

    watching: float
    questions: tuple[float, ...]
    megabytes: float


def answers_from_memory(model: Any, processor: Any, sample: Sample, keep: float) -> list[str]:
    """What a memory of the sample's video answers to its questions, each asked for itself."""
    memory = segmo.watch(model, processor, sample.pictures, fps=PICTURES, keep=keep)
    found = []
    for question in sample.questions:
        memory.forget()
        found.append(memory.ask(question.text, max_new_tokens=1).strip())
    return found


def time_memory(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    prompt: Prompt,
    keep: float,
    segments: int | str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Remembered:
    """Watch the video of a prompt once, then ask about it.

    Args:
        model: as it is; compiled or not makes no difference.
        processor: of its text.
        prompt: with the video's features in place of its pixels.
        keep, segments: as for the ways beside it.
        progress: called with (steps done, steps in all).
    """
    start = time.perf_counter()
    memory = segmo.watch(model, None, prompt, keep=keep, segments=segments)
    watching = time.perf_counter() - start
    progress(1, 1 + len(QUESTIONS))
    seconds = []
    for at, question in enumerate(QUESTIONS):
        behind = ids_behind(processor, question)
        memory.forget()
        start = time.perf_counter()
        memory.ask(behind, max_new_tokens=1)
        seconds.append(time.perf_counter() - start)
        progress(2 + at, 1 + len(QUESTIONS))
    return Remembered(watching, tuple(seconds), memory.summary()["bytes"] / 1e6)


def memory_table(remembered: Remembered, timings: Sequence[Timing]) -> Table:
    """What questions cost a memory, beside the prefill of each way."""
    table = Table(title=f"{len(QUESTIONS)} questions about one video, watched once", title_justify="left")
    table.add_column("way", style="bold")
    for name in ("the video", "each question", "all together", "speedup"):
        table.add_column(name, justify="right")
    count, each = len(QUESTIONS), statistics.median(remembered.questions)
    rows = [(timing.way.name, 0.0, timing.seconds, count * timing.seconds) for timing in timings]
    rows.append(("memory", remembered.watching, each, remembered.watching + sum(remembered.questions)))
    for name, video, question, together in rows:
        seen = f"{video:.2f} s" if video else ""
        table.add_row(name, seen, f"{question:.2f} s", f"{together:.2f} s", f"{rows[0][3] / together:.1f}x")
    return table
