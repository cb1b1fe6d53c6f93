"""Relevance by CLIP and SigLIP: the real classes, loaded from a folder, and cases in which one scene must win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_text_models import END, PAD, SIDE, START, save_image_text_model

from segmo.errors import OptionError
from segmo.upstream.image_text import ImageTextScorer

LONG = {"clip": 77, "siglip": 64}


@pytest.fixture(params=["clip", "siglip"])
def scorer(request: pytest.FixtureRequest, tmp_path: Path) -> ImageTextScorer:
    return ImageTextScorer.load(save_image_text_model(request.param, tmp_path))


def _pictures(count: int) -> list[Any]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (SIDE + 7, SIDE + 2 * n, 3), dtype=np.uint8) for n in range(count)]


def _teach(scorer: ImageTextScorer, pictures: list[Any], texts: torch.Tensor, pairs: dict[int, int]) -> None:
    """Turns the text space so that text chunk c points where picture ``pairs[c]`` does, and away from all others."""
    images = scorer.image_features(pictures)
    images = images - images.mean(0)
    aims = torch.stack([images[pairs[c]] if c in pairs else -images.sum(0) - images[0] for c in range(len(texts))])
    turn = torch.linalg.lstsq(texts, aims).solution.T
    features = scorer.model.get_text_features

    def turned(**inputs: Any) -> torch.Tensor:
        return torch.nn.functional.normalize(features(**inputs).pooler_output, dim=-1) @ turn.T

    scorer.model.get_text_features = turned


def test_the_scene_that_the_question_was_paired_with_wins(scorer: ImageTextScorer) -> None:
    pictures = _pictures(5)
    questions = ["which digit in red grid", "a taxi comes", "WHO?", "zzz 12345", "what is on the wall behind it"]
    texts = torch.cat([scorer.text_features(question) for question in questions])
    _teach(scorer, pictures, texts, {n: n for n in range(5)})
    for number, question in enumerate(questions):
        assert int(scorer.score(pictures, question).argmax()) == number


def test_no_word_of_a_long_question_is_cut(scorer: ImageTextScorer) -> None:
    question = "tell me about it. " * 30 + "where is the bicycle?"
    chunks = scorer.chunks(question)
    assert chunks.shape[0] > 4
    assert chunks.shape[1] == scorer.longest
    rows = [[t for t in row if t not in (START, END, PAD)] for row in chunks.tolist()]
    overlap = (scorer.longest - scorer.tokenizer.num_special_tokens_to_add()) // 4
    ids = rows[0] + [token for row in rows[1:] for token in row[overlap:]]
    assert scorer.tokenizer.decode(ids) == question
    assert all(row.count(END) == 1 for row in chunks.tolist())


def test_the_end_of_a_long_question_decides(scorer: ImageTextScorer) -> None:
    pictures = _pictures(4)
    question = "tell me about it. " * 30 + "where is the bicycle?"
    texts = scorer.text_features(question)
    _teach(scorer, pictures, texts, {len(texts) - 1: 2})
    assert int(scorer.score(pictures, question).argmax()) == 2


def test_two_thousand_words_and_no_words(scorer: ImageTextScorer) -> None:
    pictures = _pictures(3)
    long = scorer.score(pictures, "word " * 2000)
    assert bool(long.isfinite().all())
    assert scorer.score(pictures, "  ").tolist() == [0, 0, 0]


def test_a_score_does_not_depend_on_the_batch(scorer: ImageTextScorer) -> None:
    pictures = _pictures(19)
    together = scorer.score(pictures, "which one")
    alone = torch.cat([scorer.score([picture], "which one") for picture in pictures])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_folder_without_such_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds no image-text model"):
        ImageTextScorer.load(tmp_path)
