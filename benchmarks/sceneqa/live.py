"""Live video: questions in the middle of a film about what was seen before (``python benchmarks/sceneqa/live.py``).

A film of SceneQA goes on scene by scene. When a few scenes are over, questions are asked about all that was shown so
far. Three ways answer them:

- memory: ``segmo.watch``, extended as the film goes on; a question sees as many video tokens as N frames have;
- last N frames: the model on the newest N frames alone, which is said to beat published streaming methods;
- everything: full attention on all that was shown, which a film without end does not allow.

Answers are told apart by how long ago the oldest scene was over that a question needs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import segmo
from segmo.sceneqa.methods import answer_full
from segmo.sceneqa.model import build_prompts, load_model
from segmo.sceneqa.questions import KINDS, Question, choose_questions
from segmo.sceneqa.render import PICTURES
from segmo.sceneqa.results import Share
from segmo.sceneqa.task import DIFFICULTIES, SPLITS, make_sample

MOMENTS = (4, 8, 12, 16)  # scenes that are over when questions come
FRAMES = (4, 8, 16)
PER_KIND = dict.fromkeys(KINDS, 3)
AGES = ("now", "1 to 3 scenes ago", "longer ago")
ALL = "everything"


@dataclass(frozen=True)
class Moment:
    """A point of a film: frames that were shown, and what is asked there."""

    scenes: int
    frames: int
    questions: tuple[Question, ...]

    def age(self, question: Question) -> str:
        """How long ago the oldest scene was on that a question needs."""
        ago = self.scenes - 1 - min(question.scenes, default=0)
        return AGES[0] if ago == 0 else AGES[1] if ago <= 3 else AGES[2]


def moments(split: str, index: int) -> tuple[NDArray[np.uint8], list[Moment]]:
    """A film, (2 * frames, height, width, 3) uint8, and the points at which questions are asked."""
    sample = make_sample(split, DIFFICULTIES["standard"], index)
    rng = np.random.default_rng([SPLITS.index(split), index])
    found = []
    for scenes in MOMENTS:
        shown = sample.script[:scenes]
        frames = shown[-1].start + shown[-1].length
        found.append(Moment(scenes, frames, tuple(choose_questions(shown, PER_KIND, rng))))
    return sample.pictures, found


def from_memory(memory: segmo.Memory, questions: tuple[Question, ...], tokens: int) -> list[int]:
    """Ids that a memory answers with, when each question sees so many video tokens."""
    keep = min(1.0, (tokens + 0.5) / memory.summary()["video_tokens"])  # its floor is what is kept
    inputs = memory.inputs([question.text for question in questions], keep=keep)
    ids = memory.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return [int(row[-1]) for row in ids]


def answers(model: Any, processor: Any, split: str, index: int) -> Iterator[tuple[str, Moment, Question, bool]]:
    """Each way's answers about one film: the way, the moment, the question, and whether it was answered rightly."""
    pictures, film = moments(split, index)
    memory, shown = None, 0
    for moment in film:
        new = pictures[PICTURES * shown : PICTURES * moment.frames]
        if memory is None:
            memory = segmo.watch(model, processor, new, fps=PICTURES)
        else:
            memory.extend(new)
        shown = moment.frames
        seen = pictures[: PICTURES * shown]
        whole = build_prompts(model, processor, seen, moment.questions)
        right = whole.answer.tolist()
        found = {ALL: answer_full(model, whole).logits.argmax(-1).tolist()}
        for frames in FRAMES:
            last = build_prompts(model, processor, seen[-PICTURES * frames :], moment.questions)
            found[f"last {frames} frames"] = answer_full(model, last).logits.argmax(-1).tolist()
            tokens = frames * len(whole.features) // shown
            found[f"memory, {tokens} tokens"] = from_memory(memory, moment.questions, tokens)
        for way, said in found.items():
            for question, word, wanted in zip(moment.questions, said, right, strict=True):
                yield way, moment, question, word == wanted


def table(records: list[dict[str, Any]], by: str, columns: tuple[str, ...]) -> Table:
    """Shares of right answers with 95% intervals: a row for each way, a column for each of ``columns``."""
    counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for record in records:
        for column in (record[by], "all"):
            counts[record["way"], column].append(record["right"])
    shown = Table(title=f"Live: right answers by {by}, %", title_justify="left")
    for name in ("way", *columns, "all"):
        shown.add_column(name, justify="right" if shown.columns else "left")
    for way in dict.fromkeys(record["way"] for record in records):
        cells = (counts[way, column] for column in (*columns, "all"))
        shown.add_row(way, *(str(Share(sum(cell), len(cell))) if cell else "" for cell in cells))
    return shown


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/live.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    model, processor = load_model()
    console, records = Console(width=120), []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for index in range(given.films):
        for way, moment, question, right in answers(model, processor, given.split, index):
            records.append({"film": index, "scenes": moment.scenes, "way": way, "kind": question.kind})
            records[-1] |= {"age": moment.age(question), "right": right}
        given.out.write_text(json.dumps(records))
        console.print(f"{index + 1}/{given.films}")
    console.print(table(records, "age", AGES))
    console.print(table(records, "kind", KINDS))


if __name__ == "__main__":
    main()
