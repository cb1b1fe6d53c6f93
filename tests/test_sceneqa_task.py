"""SceneQA's generator: the same bits every time, nothing leaks between splits, and every answer is in the video."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmo.errors import SegMoError
from segmo.sceneqa.backgrounds import HELD_OUT, PAIRS
from segmo.sceneqa.glyphs import PARTS, SHAPES, load_digits, shape_alpha
from segmo.sceneqa.questions import CHANCE, COUNTS, KINDS, WORDS, all_questions, choose_questions
from segmo.sceneqa.render import HEIGHT, PICTURES, WIDTH, render
from segmo.sceneqa.script import FEW, Scene, write_script
from segmo.sceneqa.task import DIFFICULTIES, Checksum, Difficulty, make_sample, samples

EASY = DIFFICULTIES["easy"]

sizes = st.integers(2, 24).flatmap(lambda scenes: st.tuples(st.just(scenes), st.integers(scenes, 200)))


@given(sizes, st.integers(0, 2**32), st.booleans())
def test_script_fills_the_video_without_gaps(size: tuple[int, int], seed: int, training: bool) -> None:
    scenes, frames = size
    script = write_script(scenes, frames, training, np.random.default_rng(seed))
    assert len(script) == scenes
    at = 0
    for scene in script:
        assert scene.start == at
        assert scene.length >= 1
        assert 0 <= scene.seen[0] <= scene.seen[1] <= scene.length
        assert (scene.seen[1] > scene.seen[0]) == (scene.digit >= 0)
        assert scene.shape < 0 or 0 < scene.flash < scene.length
        at += scene.length
    assert at == frames
    assert len({scene.pair for scene in script}) == scenes


@given(st.integers(0, 2**32))
def test_training_never_shows_a_held_out_background(seed: int) -> None:
    script = write_script(16, 64, True, np.random.default_rng(seed))
    assert not {scene.pair for scene in script} & set(HELD_OUT)


def test_training_often_shows_scenes_that_look_alike() -> None:
    def colours(training: bool) -> list[int]:
        scripts = [write_script(16, 64, training, np.random.default_rng(seed)) for seed in range(100)]
        return [len({PAIRS[scene.pair][0] for scene in script}) for script in scripts]

    assert sum(count == FEW for count in colours(True)) > 10, "few colours in some training videos"
    assert min(colours(False)) > FEW


def test_a_quarter_of_backgrounds_is_held_out_and_no_word_with_them() -> None:
    assert len(HELD_OUT) * 4 == len(PAIRS)
    seen = [PAIRS[pair] for pair in range(len(PAIRS)) if pair not in HELD_OUT]
    for word in range(2):
        assert {pair[word] for pair in seen} == {pair[word] for pair in PAIRS}


def test_parts_share_no_digit() -> None:
    taken = Counter(index for part in PARTS.values() for index in range(part.start, part.stop))
    assert max(taken.values()) == 1
    for part in PARTS:
        assert all(len(glyphs) > 10 for glyphs in load_digits(part).by_label)


def test_same_seed_same_bits() -> None:
    sums = []
    for _ in range(2):
        checksum = Checksum()
        for sample in samples("validation", EASY, 3):
            checksum.add(sample)
        sums.append(str(checksum))
    assert sums[0] == sums[1]


def test_splits_and_indices_differ() -> None:
    seen = {
        make_sample(split, EASY, index).pictures.tobytes()
        for split in ("train", "validation", "test")
        for index in (0, 1)
    }
    assert len(seen) == 6


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SegMoError, match="no split 'dev'"):
        make_sample("dev", EASY, 0)


def _scene(start: int, length: int, pair: int, digit: int, shape: int = -1) -> Scene:
    return Scene(pair, start, length, digit, (0, length if digit >= 0 else 0), False, shape, 1)


def test_questions_and_answers_of_a_known_script() -> None:
    script = (_scene(0, 2, 0, 4), _scene(2, 6, 9, -1, 3), _scene(8, 1, 10, 7), _scene(9, 3, 20, 4))
    found = {question.text: question.answer for question in all_questions(script)}
    names = [" ".join(PAIRS[scene.pair]) for scene in script]
    assert found[f"which digit in {names[0]}"] == "4"
    assert f"which digit in {names[1]}" not in found
    assert found[f"which shape in {names[1]}"] == SHAPES[3]
    assert f"which digit after {names[0]}" not in found
    assert found[f"which digit after {names[1]}"] == "7"
    assert found[f"which digit after {names[2]}"] == "4"
    assert found["how many scenes show 4"] == "two"
    assert found["how many scenes show 1"] == "none"
    assert not any(text.startswith("which first") and " 4" in text for text in found)


def test_order_names_the_digit_that_comes_first() -> None:
    script = (_scene(0, 1, 0, 8), _scene(1, 1, 9, 2))
    found = {question.text: question.answer for question in all_questions(script)}
    assert found["which first 8 or 2"] == found["which first 2 or 8"] == "8"


def test_every_question_has_five_known_words_and_a_known_answer() -> None:
    for sample in samples("test", EASY, 10):
        for question in sample.questions:
            words = question.text.split()
            assert len(words) == 5
            assert set(words) | {question.answer} <= set(WORDS)


def test_answers_are_balanced_so_that_chance_is_as_stated() -> None:
    """No constant answer (and for *order* neither place) beats the stated chance by more than noise allows."""
    rng = np.random.default_rng(1)
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    first_named = 0
    for _ in range(400):
        script = write_script(16, 128, False, rng)
        for question in choose_questions(script, dict.fromkeys(KINDS, 4), rng):
            answers[question.kind][question.answer] += 1
            first_named += question.kind == "order" and question.text.split()[2] == question.answer
    for kind in ("retrieve", "moment", "count", "cross-scene"):
        best = max(answers[kind].values()) / sum(answers[kind].values())
        assert best < CHANCE[kind] + 0.08, kind
    assert abs(first_named / sum(answers["order"].values()) - CHANCE["order"]) < 0.05
    assert set(answers["count"]) == set(COUNTS)


def test_pixels_show_the_script() -> None:
    script = (_scene(0, 3, 0, -1), _scene(3, 6, 9, 5, 2))
    pictures = render(script, load_digits("test"), np.random.default_rng(0)).astype(int)
    assert pictures.shape == (9 * PICTURES, HEIGHT, WIDTH, 3)
    change = np.abs(np.diff(pictures, axis=0)).max(axis=-1)
    assert change[: 3 * PICTURES - 1].max() < 25, "a still scene has only noise"
    assert change[3 * PICTURES - 1].mean() > 25, "a cut changes the picture"
    ink = (pictures.min(axis=-1) > 200).sum(axis=(1, 2))
    assert ink[0] == 0
    assert ink[3 * PICTURES] > 15
    dark = (pictures.max(axis=-1) < 25).sum(axis=(1, 2)) - (pictures[-1].max(axis=-1) < 25).sum()
    flash = slice(4 * PICTURES, 5 * PICTURES)
    assert (dark[flash] > 40).all()
    assert dark[3 * PICTURES : 4 * PICTURES].max() < 10


def test_shapes_differ() -> None:
    alpha = shape_alpha().reshape(len(SHAPES), -1)
    distance = np.abs(alpha[:, None] - alpha).sum(-1) + 1e9 * np.eye(len(SHAPES))
    assert distance.min() > 15


def test_difficulty_is_what_it_says() -> None:
    sample = make_sample("test", Difficulty(5, 40), 0)
    assert len(sample.script) == 5
    assert len(sample.pictures) == 40 * PICTURES
    assert sample.scene_F.tolist() == sorted(sample.scene_F.tolist())
    assert len(sample.scene_F) == 40
