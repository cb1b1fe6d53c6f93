"""The five kinds of questions. Every question has five words and its answer one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segmo.sceneqa.backgrounds import COLOURS, HELD_OUT, PAIRS, TEXTURES
from segmo.sceneqa.glyphs import SHAPES
from segmo.sceneqa.script import Scene

KINDS = ("retrieve", "moment", "order", "count", "cross-scene")
COUNTS = ("none", "one", "two", "three")
# Accuracy of the best answer that does not look at the video.
CHANCE = {"retrieve": 1 / 10, "moment": 1 / 6, "order": 1 / 2, "count": 1 / 4, "cross-scene": 1 / 10}
DIGITS = tuple(str(digit) for digit in range(10))
WORDS = (
    *("which", "digit", "shape", "in", "after", "first", "or", "how", "many", "scenes", "show"),
    *DIGITS,
    *COUNTS,
    *SHAPES,
    *COLOURS,
    *TEXTURES,
)


@dataclass(frozen=True)
class Question:
    """One question about a video.

    Attributes:
        kind: one of ``KINDS``.
        text, answer: five words, and one.
        scenes: indices of the scenes that hold the answer.
        unseen: the background it names is one of those that training never showed.
    """

    kind: str
    text: str
    answer: str
    scenes: tuple[int, ...]
    unseen: bool


def _name(pair: int) -> str:
    return " ".join(PAIRS[pair])


def _about_scenes(script: Sequence[Scene]) -> list[Question]:
    """retrieve, moment and cross-scene: questions that name a background."""
    found = []
    for number, scene in enumerate(script):
        name, unseen = _name(scene.pair), scene.pair in HELD_OUT
        if scene.digit >= 0:
            found.append(Question("retrieve", f"which digit in {name}", str(scene.digit), (number,), unseen))
        if scene.shape >= 0:
            found.append(Question("moment", f"which shape in {name}", SHAPES[scene.shape], (number,), unseen))
        if number + 1 < len(script) and script[number + 1].digit >= 0:
            answer = str(script[number + 1].digit)
            found.append(Question("cross-scene", f"which digit after {name}", answer, (number, number + 1), unseen))
    return found


def _about_digits(script: Sequence[Scene]) -> list[Question]:
    """order and count: questions that name digits."""
    where: dict[int, list[int]] = {digit: [] for digit in range(10)}
    for number, scene in enumerate(script):
        if scene.digit >= 0:
            where[scene.digit].append(number)
    found = []
    once = [digit for digit in range(10) if len(where[digit]) == 1]
    for a, b in itertools.permutations(once, 2):
        first = a if where[a] < where[b] else b
        found.append(Question("order", f"which first {a} or {b}", str(first), (where[a][0], where[b][0]), False))
    for digit, scenes in where.items():
        if len(scenes) < len(COUNTS):
            text, answer = f"how many scenes show {digit}", COUNTS[len(scenes)]
            found.append(Question("count", text, answer, tuple(scenes), False))
    return found


def all_questions(script: Sequence[Scene]) -> list[Question]:
    """Every question that the script has an answer to."""
    return _about_scenes(script) + _about_digits(script)


def choose_questions(script: Sequence[Scene], count: dict[str, int], rng: np.random.Generator) -> list[Question]:
    """Up to ``count[kind]`` questions of each kind. Counts are drawn so that each answer is as likely as any
    other.

    A kind that the script has too few questions of gives all it has.
    """
    pool = all_questions(script)
    chosen = []
    for kind, wanted in count.items():
        of_kind = [question for question in pool if question.kind == kind]
        weight = np.ones(len(of_kind))
        if kind == "count":
            answers = Counter(question.answer for question in of_kind)
            weight = np.array([1 / answers[question.answer] for question in of_kind])
        taken = min(wanted, len(of_kind))
        if taken:
            picks = rng.choice(len(of_kind), taken, replace=False, p=weight / weight.sum())
            chosen += [of_kind[pick] for pick in picks]
    return chosen
