"""The demo's questions to the trained model, with which it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import segmo
from segmo.demo import main
from segmo.demo.answers import answer_side_by_side, answer_table, save_answer_picture
from segmo.sceneqa.questions import KINDS


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_the_demo_begins_with_every_kind_answered_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the trained model. Then comes the one with random weights, which is not asked: its answers mean nothing."""
    found = []

    def recorded(*args: Any, **options: Any) -> Any:
        found.append(answer_side_by_side(*args, **options))
        return found[0]

    class RandomWeightsBegin(Exception):
        pass

    def end(*args: Any) -> Any:
        raise RandomWeightsBegin

    monkeypatch.setattr(main, "answer_side_by_side", recorded)
    monkeypatch.setattr(main, "_prepare", end)
    with pytest.raises(RandomWeightsBegin):
        main.run_demo(tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert said.index("Answers of the trained model") < said.index(main.TRAINED) < said.index(main.RANDOM)
    ((sample, answered),) = found
    assert [each.question.kind for each in answered] == list(KINDS)
    words = {each.question.answer for each in answered}
    assert words & {each.full for each in answered}, "some answer is right under full attention"
    right = [each.question.answer == each.remembered for each in answered]
    assert sum(right) >= 3, "most answers of the memory are right"
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 192
    for each in answered:
        assert each.cells.sum() == 192
        assert each.scenes[-1]["end_frame"] == len(each.cells)
    assert answer_table(answered).row_count == len(KINDS)
    assert save_answer_picture(sample, answered, tmp_path).stat().st_size > 10_000
