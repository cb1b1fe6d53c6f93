"""Accuracy at a fixed small sample. Fails when selection is no better than chance would do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from rivals.methods import rival_methods

from segmo.sceneqa.evaluate import QuestionSet, build_set, evaluate
from segmo.sceneqa.methods import Method, answer_full, both_method, cas_method
from segmo.sceneqa.model import load_model
from segmo.sceneqa.results import OVERALL, Row, summarise
from segmo.sceneqa.task import DIFFICULTIES

pytestmark = pytest.mark.slow

VIDEOS = 8
KEEP = 0.125
FULL = {"retrieve": 0.82, "moment": 0.92, "order": 0.6, "count": 0.7, "cross-scene": 0.77}
FOUND, BLIND, LOST = 0.9, 0.42, 0.02


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Row]:
    model, processor = load_model()
    questions: QuestionSet = build_set(model, processor, "validation", DIFFICULTIES["standard"], VIDEOS)
    blind = [method for method in rival_methods([KEEP], {}) if method.name in ("random tokens", "uniform frames")]
    methods: list[Method] = [
        Method("full", 1.0, answer_full),
        cas_method(KEEP),
        both_method(KEEP),
        both_method(0.25, "CAS+LSP at a quarter"),
        both_method(0.25, "without tails", tails=0),
        *blind,
    ]
    path: Any = tmp_path_factory.mktemp("accuracy") / "results.jsonl"
    return {row.name: row for row in summarise(evaluate(model, methods, questions, path), {})}


def _found(row: Row) -> float:
    """Accuracy on the kinds whose answer is in one scene."""
    right = sum(row.accuracy[kind].right for kind in ("retrieve", "moment"))
    return right / sum(row.accuracy[kind].total for kind in ("retrieve", "moment"))


def test_full_attention_answers(rows: Mapping[str, Row]) -> None:
    for kind, bound in FULL.items():
        assert rows["full"].accuracy[kind].value >= bound, kind


def test_selection_finds_what_random_and_uniform_selection_miss(rows: Mapping[str, Row]) -> None:
    for blind in ("random tokens", "uniform frames"):
        assert _found(rows[blind]) < BLIND, "the bounds must tell good selection from bad"
    assert _found(rows["CAS"]) >= FOUND
    assert _found(rows["CAS+LSP"]) >= FOUND


def test_a_quarter_of_the_tokens_is_nearly_enough(rows: Mapping[str, Row]) -> None:
    lost = rows["full"].accuracy[OVERALL].value - rows["CAS+LSP at a quarter"].accuracy[OVERALL].value
    assert lost <= LOST


def test_tail_frames_tell_a_segment_what_it_follows(rows: Mapping[str, Row]) -> None:
    """The digit in the scene after a named one: with a segment for each scene, only context knows the scene before."""
    found = {
        name: rows[name].accuracy["cross-scene"].value for name in ("full", "CAS+LSP at a quarter", "without tails")
    }
    assert found["CAS+LSP at a quarter"] >= found["full"] - 0.1
    assert found["without tails"] < found["full"] - 0.1


def test_exactly_the_budget_is_kept(rows: Mapping[str, Row]) -> None:
    video = rows["full"].kept
    assert rows["CAS"].kept == rows["CAS+LSP"].kept == int(KEEP * video)
