"""Runs methods over the questions of a split, saving as it goes; a run that was broken off goes on."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from segmo.sceneqa.methods import Method, compiled
from segmo.sceneqa.model import Prompts, build_prompts, weights_label
from segmo.sceneqa.results import read_results
from segmo.sceneqa.task import Checksum, Difficulty, samples

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class QuestionSet:
    """Prompts of a split, and what identifies them and the weights that answer."""

    prompts: tuple[Prompts, ...]
    label: str


def build_set(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    split: str,
    difficulty: Difficulty,
    videos: int,
    per_kind: int | Mapping[str, int] = 5,
    progress: Progress = lambda done, total: None,
) -> QuestionSet:
    """Encode the first ``videos`` videos of a split."""
    checksum, found = Checksum(difficulty.version), []
    for sample in samples(split, difficulty, videos, per_kind):
        checksum.add(sample)
        first = difficulty.asks_first(sample.index)
        parts = (sample.pictures, sample.questions, sample.index)
        found.append(build_prompts(model, processor, *parts, text_first=first))
        progress(len(found), videos)
    name = f"SceneQA {difficulty.version}, {split} split, {videos} videos of {difficulty}"
    return QuestionSet(tuple(found), f"{name}, checksum {checksum}, weights {weights_label(model)}")


def evaluate(
    model: Qwen2VLForConditionalGeneration,
    methods: Sequence[Method],
    questions: QuestionSet,
    path: Path,
    progress: Progress = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Answer all questions with all methods; lines that ``path`` already holds for this set are kept.

    Returns:
        The lines of these methods on this set, in the order of the methods.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [record for record in read_results(path) if record["set"] == questions.label]
    done = {(record["key"], record["video"]): record for record in known}
    total = len(methods) * len(questions.prompts)
    with path.open("a") as file:
        for number, method in enumerate(methods):
            missing = [p for p in questions.prompts if (method.key, p.video) not in done]
            if missing:
                with compiled(model, method):
                    for prompts in missing:
                        record = _answer(model, method, prompts, questions.label)
                        done[method.key, prompts.video] = record
                        file.write(json.dumps(record) + "\n")
                        file.flush()
            progress((number + 1) * len(questions.prompts), total)
    return [done[method.key, prompts.video] for method in methods for prompts in questions.prompts]


def _answer(model: Qwen2VLForConditionalGeneration, method: Method, prompts: Prompts, label: str) -> dict[str, Any]:
    answers = method.answer(model, prompts)
    right = (answers.logits.argmax(-1) == prompts.answer).int().tolist()
    return {
        "set": label,
        "key": method.key,
        "name": method.name,
        "keep": method.keep,
        "video": prompts.video,
        "kinds": prompts.kinds,
        "unseen": prompts.unseen,
        "right": right,
        "kept": answers.kept,
        "flops": answers.flops,
    }


def time_methods(
    model: Qwen2VLForConditionalGeneration,
    methods: Sequence[Method],
    questions: QuestionSet,
    videos: int = 5,
    progress: Progress = lambda done, total: None,
) -> dict[str, float]:
    """Median seconds of a prefill of one prompt, by method key, after one run to warm up.

    One question is asked at a time, as a user would.
    """
    found: dict[str, float] = {}
    single = [prompts.only(0) for prompts in questions.prompts[:videos]]
    for number, method in enumerate(methods):
        with compiled(model, method):
            method.answer(model, single[0])
            seconds = []
            for prompts in single:
                start = time.perf_counter()
                method.answer(model, prompts)
                seconds.append(time.perf_counter() - start)
        found[method.key] = statistics.median(seconds)
        progress(number + 1, len(methods))
    return found
