"""The harder sets of SceneQA: several one-cell things a frame, a wandering camera, and a bee that never rests."""

from __future__ import annotations

from pathlib import Path

import evaluate as benchmark
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmo.sceneqa import command
from segmo.sceneqa.busy import CELL, EDGE, BusyScene, fill_scenes, mark_alpha, render_busy
from segmo.sceneqa.glyphs import SIDE, load_digits, shape_alpha
from segmo.sceneqa.methods import Method, answer_full
from segmo.sceneqa.model import BUSY_MODEL_PATH, MODEL_PATH, build_prompts, load_model, weights_for
from segmo.sceneqa.render import PICTURES
from segmo.sceneqa.results import read_results
from segmo.sceneqa.script import write_script
from segmo.sceneqa.task import DIFFICULTIES, Checksum, Difficulty, make_sample

SMALL = Difficulty(3, 12, (4, 6))
sizes = st.tuples(st.integers(3, 8), st.integers(3, 8))


@given(size=sizes, seed=st.integers(0, 999))
def test_things_of_a_scene_stand_in_cells_of_their_own(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    script = write_script(8, 60, False, rng)
    for plain, scene in zip(script, fill_scenes(script, size, rng), strict=True):
        assert scene.digit == plain.digit
        assert len(scene.path) == scene.length
        assert len(scene.marks) == len(scene.mark_cells) in (1, 2)
        still = [*scene.mark_cells, scene.flash_cell]
        assert len(set(still)) == len(still)
        assert not set(still) & set(scene.path)
        assert all(0 <= cell < size[0] * size[1] for cell in (*still, *scene.path))
        for before, after in zip(scene.path, scene.path[1:], strict=False):
            (row, column), (other_row, other_column) = divmod(before, size[1]), divmod(after, size[1])
            assert abs(row - other_row) + abs(column - other_column) <= 1
        assert scene.moving or len(set(scene.path)) == 1


def _scene(drift: tuple[float, float], digit: int = -1, marks: tuple[int, ...] = ()) -> BusyScene:
    return BusyScene(
        5, 0, 8, digit, (2, 5) if digit >= 0 else (0, 0), False, 1, 6, marks, (3, 9)[: len(marks)], 20, (13,) * 8, drift
    )


def _pictures(scene: BusyScene) -> np.ndarray:
    return render_busy((scene,), (4, 6), load_digits("test"), np.random.default_rng(3)).astype(int)


def _cell(picture: np.ndarray, cell: int) -> np.ndarray:
    top, left = (CELL * part for part in divmod(cell, 6))
    return picture[..., top : top + CELL, left : left + CELL, :]


def test_a_frame_shows_its_things_where_the_script_says() -> None:
    """Against the same random numbers without the thing, only its cell differs."""
    empty, full = _pictures(_scene((0.5, 0.5))), _pictures(_scene((0.5, 0.5), marks=(1, 2)))
    assert full.shape == (8 * PICTURES, 4 * CELL, 6 * CELL, 3)
    changed = np.abs(full - empty).max(axis=(0, 3)) > 0
    there = np.zeros_like(changed)
    for cell in (3, 9):
        _cell(there[..., None], cell)[...] = True
        assert _cell(changed[..., None], cell).any()
    assert not (changed & ~there).any()
    shown = _pictures(_scene((0.5, 0.5), digit=4))
    white = (_cell(shown, 13).min(axis=-1) > 200).sum(axis=(1, 2))
    assert (white[2 * PICTURES : 5 * PICTURES] > 5).all(), "the digit while it is seen"
    dark = (_cell(empty, 20).max(axis=-1) < 25).sum(axis=(1, 2))
    assert (dark[6 * PICTURES : 7 * PICTURES] > 20).all(), "the flash"


def test_the_camera_moves_by_parts_of_a_cell_and_the_bee_never_rests() -> None:
    still, moved = _pictures(_scene((0.0, 0.0))), _pictures(_scene((0.4, 0.7)))
    step = np.abs(np.diff(still, axis=0)).max(axis=-1) > 60
    assert (step.sum(axis=(1, 2)) > 10).all(), "without drift the bee alone changes, in every picture"
    assert (step.sum(axis=(1, 2)) < 3 * SIDE**2).all()
    drifted = (np.abs(np.diff(moved, axis=0)).max(axis=-1) > 25).mean(axis=(1, 2))
    assert (drifted > (np.abs(np.diff(still, axis=0)).max(axis=-1) > 25).mean(axis=(1, 2))).mean() > 0.5


def test_marks_are_neither_digits_nor_shapes() -> None:
    forms = np.concatenate([mark_alpha(), shape_alpha()]).reshape(-1, SIDE * SIDE)
    distance = np.abs(forms[:, None] - forms).sum(-1) + 1e9 * np.eye(len(forms))
    assert distance.min() > 15
    assert CELL == SIDE + 2 * EDGE


def test_a_harder_set_is_told_apart_and_the_same_every_time() -> None:
    first, again = make_sample("test", SMALL, 0), make_sample("test", SMALL, 0)
    assert np.array_equal(first.pictures, again.pictures)
    assert first.questions == again.questions
    assert first.pictures.shape == (12 * PICTURES, 4 * CELL, 6 * CELL, 3)
    sums = []
    for version in (1, 2):
        checksum = Checksum(version)
        checksum.add(first)
        sums.append(str(checksum))
    assert sums[0] != sums[1]
    assert {DIFFICULTIES[name].version for name in ("easy", "standard", "long")} == {1}
    for name in ("hard", "harder"):
        difficulty = DIFFICULTIES[name]
        assert difficulty.version == 2
        assert difficulty.busy is not None
        assert 24 <= difficulty.busy[0] * difficulty.busy[1] <= 64


@pytest.mark.parametrize("index", [0, 1])
def test_the_model_reads_a_busy_video_and_every_second_question_comes_first(index: int) -> None:
    model, processor = load_model(weights_for(SMALL))
    sample = make_sample("validation", SMALL, index, 1)
    first = SMALL.asks_first(index)
    assert first == (index == 1)
    prompts = build_prompts(model, processor, sample.pictures, sample.questions, index, text_first=first)
    assert len(prompts.features) == 12 * 24
    video = (prompts.input_ids[0] == model.config.video_token_id).nonzero()[:, 0]
    words = (prompts.input_ids[0] == processor.tokenizer.convert_tokens_to_ids("which")).nonzero()
    if words.numel():
        assert bool(words[0, 0] < video[0]) == first


def test_harder_sets_are_asked_of_the_weights_that_were_trained_on_them() -> None:
    for name, difficulty in DIFFICULTIES.items():
        assert weights_for(difficulty) == (BUSY_MODEL_PATH if name in ("hard", "harder") else MODEL_PATH), name


def test_segmo_eval_takes_them_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the same folder for both sets, no answer of other weights counts."""
    small = {"standard": Difficulty(3, 8), "harder": Difficulty(3, 8, (4, 6))}
    monkeypatch.setattr(command, "DIFFICULTIES", small)
    monkeypatch.setattr(command, "own_methods", lambda budgets, segments: [Method("full", 1.0, answer_full)])
    for name in small:
        command.run_evaluation(tmp_path, "validation", name, 1, [0.5], "scene")
    plain, busy = [str(record["set"]).split(", ")[-1] for record in read_results(tmp_path / "results.jsonl")]
    assert plain.startswith("weights sceneqa ")
    assert busy.startswith("weights sceneqa-busy ")
    assert plain.split()[-1] != busy.split()[-1], "the checksum is that of the weights"


def test_full_attention_reads_a_harder_video(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a model named: chance is a third, and the weights of the plain sets guess."""
    given = ["--difficulty", "harder", "--split", "validation", "--videos", "1", "--only", "^full"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *given, "--answers-only", "--out", str(tmp_path)])
    benchmark.main()
    (record,) = read_results(tmp_path / "results.jsonl")
    assert len(record["right"]) >= 15
    assert sum(record["right"]) / len(record["right"]) > 0.75
