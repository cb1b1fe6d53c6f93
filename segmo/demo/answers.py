"""The demo's second part: real questions to the trained model: full attention, SegMo and a memory side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

import segmo
from segmo.demo.memory import answers_from_memory
from segmo.demo.picture import draw_kept, save_picture
from segmo.demo.prefill import kept_cells
from segmo.report.storyboard import Scene
from segmo.sceneqa.model import Prompts, build_prompts, load_model
from segmo.sceneqa.questions import Question
from segmo.sceneqa.render import PICTURES
from segmo.sceneqa.task import DIFFICULTIES, Sample, make_sample

SECONDS_PER_FRAME = 1.0
ENLARGED = 4  # SceneQA's pictures are 48 x 32 pixels


@dataclass(frozen=True)
class Answered:
    """One question and what was answered.

    Attributes:
        question: with the right answer.
        full, kept, remembered: the model's answers with all tokens, through SegMo, and from a memory of the video that
            was watched once for all questions.
        scenes: ``segmo.last_report().to_dict()["scenes"]`` of the prefill under SegMo.
        cells: which tokens it kept, (F, cells_h, cells_w) bool.
    """

    question: Question
    full: str
    kept: str
    remembered: str
    scenes: Sequence[Scene]
    cells: NDArray[np.bool_]


def _next_word(model: Any, processor: Any, prompts: Prompts) -> str:
    with torch.no_grad():
        logits = model(**prompts.inputs()).logits[0, -1]
    return str(processor.tokenizer.decode([int(logits.argmax())]))


def answer_side_by_side(
    keep: float = 0.25, segments: int | str = "scene", index: int = 0, per_kind: int = 1, **options: Any
) -> tuple[Sample, list[Answered]]:
    """Ask about one video of SceneQA's test split: as the model is, through SegMo, and from a memory.

    Args:
        keep: fraction of the video tokens that SegMo keeps.
        segments: as for :func:`segmo.compile`.
        index: which video.
        per_kind: questions of each of the five kinds.
        **options: further options of :func:`segmo.compile`.

    Raises:
        SegMoError: scikit-learn, which brings the digits, or the trained model is missing.
    """
    model, processor = load_model()
    sample = make_sample("test", DIFFICULTIES["standard"], index, per_kind)
    prompts = build_prompts(model, processor, sample.pictures, sample.questions)
    single = [prompts.only(number) for number in range(len(sample.questions))]
    full = [_next_word(model, processor, one) for one in single]
    remembered = answers_from_memory(model, processor, sample, keep)
    segmo.compile(model, keep=keep, segments=segments, **options)
    merge = processor.video_processor.merge_size
    found = []
    for question, before, again, one in zip(sample.questions, full, remembered, single, strict=True):
        word = _next_word(model, processor, one)
        report = segmo.last_report()
        cells = kept_cells(report.prefill, one.grid[0], merge)
        found.append(Answered(question, before, word, again, report.to_dict()["scenes"], cells))
    segmo.uncompile(model)
    return sample, found


def answer_table(answered: Sequence[Answered]) -> Table:
    """One row per question."""
    table = Table(title="Answers of the trained model", title_justify="left")
    for name in ("kind", "question", "right answer", "full attention", "SegMo", "memory"):
        table.add_column(name)
    for one in answered:
        words = [
            f"[{'green' if word == one.question.answer else 'red'}]{word}"
            for word in (one.full, one.kept, one.remembered)
        ]
        table.add_row(one.question.kind, one.question.text, one.question.answer, *words)
    return table


def answer_picture(sample: Sample, one: Answered) -> Figure:
    """The timeline of the video for one question: scenes found, their relevance, and the tokens kept."""
    frames = sample.pictures[::PICTURES].repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    question = one.question
    return draw_kept(
        frames,
        one.scenes,
        one.cells,
        seconds_per_frame=SECONDS_PER_FRAME,
        cuts=[scene.start * SECONDS_PER_FRAME for scene in sample.script[1:]],
        caption=f'"{question.text}?" Right: {question.answer}. Full attention: {one.full}. SegMo: {one.kept}.',
    )


def save_answer_picture(sample: Sample, answered: Sequence[Answered], out: Path) -> Path:
    """Draw the first question (a *retrieve* one) into ``answers.png``."""
    return save_picture(answer_picture(sample, answered[0]), out / "answers.png")
