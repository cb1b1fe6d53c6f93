"""Live video: questions in the middle of a film, to a memory that grows with it."""

from __future__ import annotations

import pytest
from live import ALL, FRAMES, MOMENTS, answers, moments

from segmo.sceneqa.model import load_model


def test_questions_are_about_what_was_shown() -> None:
    pictures, film = moments("validation", 0)
    assert [moment.scenes for moment in film] == list(MOMENTS)
    assert 2 * film[-1].frames == len(pictures)
    for moment in film:
        assert all(max(question.scenes, default=0) < moment.scenes for question in moment.questions)
        assert {moment.age(question) for question in moment.questions} <= {"now", "1 to 3 scenes ago", "longer ago"}


@pytest.mark.slow
def test_a_memory_knows_more_than_the_last_frames_with_as_many_tokens() -> None:
    found: dict[str, list[bool]] = {}
    for way, _, _, right in answers(*load_model(), "validation", 1):
        found.setdefault(way, []).append(right)
    share = {way: sum(right) / len(right) for way, right in found.items()}
    assert len(share) == 1 + 2 * len(FRAMES)
    assert share[f"memory, {6 * FRAMES[0]} tokens"] > share[f"last {FRAMES[0]} frames"] + 0.3
    assert share[f"memory, {6 * FRAMES[-1]} tokens"] > share[ALL] - 0.1
