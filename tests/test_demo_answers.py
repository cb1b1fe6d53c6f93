"""The demo's questions to the trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

import segmo
from segmo.demo.answers import answer_side_by_side, answer_table, save_answer_picture
from segmo.sceneqa.questions import KINDS


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_every_kind_is_answered_both_ways(tmp_path: Path) -> None:
    sample, answered = answer_side_by_side(keep=0.25)
    assert [each.question.kind for each in answered] == list(KINDS)
    words = {each.question.answer for each in answered}
    assert words & {each.full for each in answered}, "some answer is right under full attention"
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 192
    for each in answered:
        assert each.cells.sum() == 192
        assert each.scenes[-1]["end_frame"] == len(each.cells)
    assert answer_table(answered).row_count == len(KINDS)
    assert save_answer_picture(sample, answered, tmp_path).stat().st_size > 10_000
