"""What training shows and teaches: nothing that is held out, and marks that say what the script says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from alignment import IGNORE, Alignment
from batches import FIRST_DIGIT, LAST_WORD, Batch, keep_frames, keep_tokens, make_batch
from forward import SHARED_VIDEO, USUAL, Grid, answer_questions, encode_frames
from lessons import look_loss
from runfolder import RunFolder
from stills import ALLOWED, NAMED, VARIANTS, Stills, _unnamed, make_stills, training_digits
from untrained import TURN_START, VISION_START, build_config, build_model, build_tokenizer

from segmo.sceneqa.backgrounds import COLOURS, HELD_OUT, PAIRS, TEXTURES
from segmo.sceneqa.glyphs import load_digits
from segmo.sceneqa.questions import KINDS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def stills(tokenizer: Any) -> Stills:
    return make_stills(200, tokenizer, np.random.default_rng(0), load_digits("train"))


@pytest.fixture(scope="module")
def batch(tokenizer: Any) -> Batch:
    questions = dict.fromkeys(KINDS, 3)
    return make_batch(2, 8, 40, tokenizer, np.random.default_rng(3), questions, load_digits("train"))


def test_training_digits_are_variants_of_training_digits_only() -> None:
    digits = training_digits(0)
    plain = load_digits("train")
    assert digits.alpha.shape == (len(plain.alpha), VARIANTS, *plain.alpha.shape[2:])
    assert ((digits.alpha >= 0) & (digits.alpha <= 1)).all()
    nearest = np.abs(digits.alpha[:, :, None] - plain.alpha[:, None, :1]).mean(axis=(2, 3, 4)).min(axis=1)
    assert np.median(nearest) < 0.12, "some variant of a digit is close to the digit"


def test_stills_never_name_a_held_out_pair(stills: Stills, tokenizer: Any) -> None:
    seen = {tuple(tokenizer.convert_ids_to_tokens(row[:2].tolist())) for row in stills.caption if row[0] != IGNORE}
    assert seen
    assert not seen & {PAIRS[pair] for pair in HELD_OUT}


@pytest.mark.parametrize("texture", range(len(TEXTURES)))
def test_unnamed_colours_stay_away_from_held_out_pairs(texture: int) -> None:
    rng = np.random.default_rng(texture)
    for _ in range(50):
        nearest = int(((NAMED - np.array(_unnamed(texture, rng))) ** 2).sum(1).argmin())
        assert ALLOWED[nearest * len(TEXTURES) + texture]


def test_alignment_knows_the_right_words(tokenizer: Any) -> None:
    """Features that are the sum of the right words are read without a mistake; random ones are not."""
    words = torch.nn.functional.normalize(torch.randn(len(tokenizer), 256, generator=torch.Generator().manual_seed(0)))
    ids = tokenizer.convert_tokens_to_ids
    rows = [[*ids([*PAIRS[pair], str(pair % 10)]), IGNORE] for pair in range(len(PAIRS)) if pair not in HELD_OUT]
    caption = torch.tensor(rows)
    features = words[caption[:, :3]].sum(1)[:, None].expand(-1, USUAL.cells, -1)
    loss, right = Alignment(tokenizer).loss(words, features, caption)
    assert right == {"colour": 1.0, "texture": 1.0, "digit": 1.0}
    worse, wrong = Alignment(tokenizer).loss(words, torch.randn_like(features), caption)
    assert worse > loss
    assert max(wrong.values()) < 0.5


def test_marks_of_questions_are_where_the_answer_is_seen(batch: Batch, tokenizer: Any) -> None:
    caption = batch.caption.unflatten(0, (2, -1))
    for video, number in (batch.kind >= 0).nonzero().tolist():
        kind, answer = KINDS[batch.kind[video, number]], int(batch.target[video, number])
        read = caption[video, batch.read[video, number]]
        words = batch.question_ids[video, number]
        match kind:
            case "retrieve" | "cross-scene":
                assert len(read)
                assert (read[:, 2] == answer).all()
                background = caption[video, batch.find[video, number]][:, :2]
                assert (background == words[4:6]).all()
            case "moment":
                assert read[:, 3].tolist() == [answer]
            case "order":
                first, second = batch.named[video, number]
                assert (caption[video, first][:, 2] == words[FIRST_DIGIT]).all()
                assert (caption[video, second][:, 2] == words[LAST_WORD]).all()
                earlier = first if int(first.nonzero()[0]) < int(second.nonzero()[0]) else second
                assert (caption[video, earlier][:, 2] == answer).all()
            case "count":
                assert (read[:, 2] == words[LAST_WORD]).all()
                assert len(read) == tokenizer.convert_tokens_to_ids(["none", "one", "two", "three"]).index(answer)


def test_notes_say_what_came_before(batch: Batch, tokenizer: Any) -> None:
    before, caption = batch.notes.before[0], batch.caption.unflatten(0, (2, -1))[0]
    changes = (caption[1:, :2] != caption[:-1, :2]).any(1).nonzero()[:, 0] + 1
    assert (before[: int(changes[0])] == IGNORE).all()
    for start in changes.tolist():
        colour, texture = tokenizer.convert_ids_to_tokens(caption[start - 1, :2].tolist())
        assert before[start].tolist() == [list(COLOURS).index(colour), TEXTURES.index(texture)]
    digits = sum(1 for start in (0, *changes.tolist()) if (caption[start:, 2] != IGNORE).any())
    assert 0 < int(batch.notes.arrives[0].sum()) <= digits


def test_dropout_keeps_what_is_new(batch: Batch) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = keep_frames(batch, 0.2, generator)
    tokens = keep_tokens(batch, frames, 0.5, generator)
    for video in range(2):
        key = set(batch.key[video].nonzero()[:, 0].tolist())
        assert key <= set(frames[video].tolist())
        assert {frame * USUAL.cells + cell for frame in key for cell in range(USUAL.cells)} <= set(
            tokens[video].tolist()
        )


def test_busy_frames_are_trained_on_like_the_others(tokenizer: Any) -> None:
    """One small batch of the harder sets through the encoder and the decoder, with its marks in the right cells."""
    grid, rng = Grid(4, 6), np.random.default_rng(1)
    questions = dict.fromkeys(KINDS, 1)
    batch = make_batch(1, 3, 6, tokenizer, rng, questions, load_digits("train"), grid=grid)
    seen = (batch.caption[:, 2] != IGNORE).nonzero()[:, 0].tolist()
    arrived = (batch.notes.arrives[0].nonzero()[:, 0] // grid.cells).tolist()
    assert 0 < len(arrived) <= 3, "once in a scene"
    assert set(arrived) <= set(seen)
    model = build_model(build_config(tokenizer, 64, 1, 64, 1), 0)
    model.set_attn_implementation({"text_config": SHARED_VIDEO})
    features = encode_frames(model, batch.patches, grid)
    assert features.shape[:2] == (6, grid.cells)
    stills = make_stills(2, tokenizer, rng, load_digits("train"), grid)
    assert encode_frames(model, stills.patches, grid).shape[:2] == (2, grid.cells)
    kept = keep_tokens(batch, torch.arange(6)[None], 0.5, torch.Generator().manual_seed(0))
    sinks = torch.tensor(tokenizer.convert_tokens_to_ids([TURN_START, VISION_START]))
    chosen = features.flatten(0, 1)[kept[0]][None]
    answered = answer_questions(model, chosen, 6, kept, sinks, batch.question_ids, grid=grid)
    assert answered.logits.shape[:2] == batch.target.shape
    assert bool(torch.isfinite(answered.logits).all())


def test_look_is_lost_probability() -> None:
    weights = torch.tensor([[[0.5, 0.25, 0.25]]])  # one question, three tokens of frames 0, 0 and 1
    where = torch.tensor([[[False, True]]])
    frame = torch.tensor([[0, 0, 1]])
    assert float(look_loss(weights, where, frame, torch.ones(1, 1))) == pytest.approx(-np.log(0.25))
    assert float(look_loss(weights, torch.zeros_like(where), frame, torch.ones(1, 1))) == 0


def test_log_of_a_run_that_goes_on_has_no_line_twice(tmp_path: Any) -> None:
    folder = RunFolder(tmp_path)
    for step in (25, 50, 75):
        folder.log({"step": step})
    folder.cut_log(50)
    folder.log({"step": 75})
    assert (tmp_path / "log.jsonl").read_text().count('"step": 75') == 1
    folder.save({"weights": torch.ones(2)})
    record = folder.load()
    assert record is not None
    assert record["weights"].tolist() == [1, 1]
    folder.note_start(75)
    assert '"from update": 75' in (tmp_path / "stages.json").read_text()
