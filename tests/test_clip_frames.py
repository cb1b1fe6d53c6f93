"""Frames of a video file chosen by its scenes and the question, with CLIP and with the Video LLM's own encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_text_models import save_image_text_model

from segmo.errors import PromptError
from segmo.sceneqa.model import load_model
from segmo.sceneqa.task import DIFFICULTIES, make_sample
from segmo.upstream.clips import ClipFrames, OwnScorer, looks_of, pictures_per_frame
from segmo.upstream.image_text import ImageTextScorer
from segmo.video import Clip


def clip_of(lengths: list[int], noise: float = 4.0) -> Clip:
    """Still scenes of so many pictures, each of another colour."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 200, (len(lengths), 1, 1, 3))
    frames = np.repeat(colours, lengths, axis=0) + generator.uniform(0, noise, (sum(lengths), 24, 32, 3))
    starts = np.cumsum(lengths)[:-1]
    seconds = np.arange(sum(lengths)) / 2
    return Clip(Path("x.mp4"), frames.astype(np.uint8), seconds, 2.0, sum(lengths) / 2, tuple(starts / 2))


class Given:
    """A scorer that is asked once, for one frame of each scene, and gives what it was told."""

    def __init__(self, score: Callable[[int], torch.Tensor]) -> None:
        self.score = score

    def encode_frames(self, frames: Sequence[Any]) -> torch.Tensor:
        return torch.zeros(len(frames))

    def score_features(self, features: torch.Tensor, question: str) -> torch.Tensor:
        return self.score(len(features))


def likes(scene: int) -> Given:
    return Given(lambda scenes: torch.eye(scenes)[scene])


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 30), st.sampled_from([1, 2]))
def test_exactly_so_many_whole_frames(lengths: list[int], wanted: int, pictures: int) -> None:
    clip = clip_of(lengths)
    kept = ClipFrames(wanted, likes(0), pictures)(clip, "which")
    frames = -(-sum(lengths) // pictures)
    assert len(set((kept // pictures).tolist())) == min(wanted, frames)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert clip.only(kept).frames.shape[0] == len(kept)
    assert looks_of(clip.frames, pictures).shape[0] == frames


def test_the_scene_that_the_question_is_about_gets_most() -> None:
    clip = clip_of([8, 8, 8])
    kept = ClipFrames(12, likes(1), balance=1.0)(clip, "which")
    assert np.bincount(clip.scene_F[kept]).argmax() == 1
    few = ClipFrames(1, likes(2), balance=1.0)(clip, "which")
    assert clip.scene_F[few].tolist() == [2]


def test_by_an_image_text_model_in_a_folder(tmp_path: Path) -> None:
    clip = clip_of([4, 4, 4])
    scorer = ImageTextScorer.load(save_image_text_model("clip", tmp_path))
    kept = ClipFrames(5, scorer)(clip, "which one is it?")
    assert len(kept) == 5


def test_the_trained_models_own_encoder_finds_the_named_scene() -> None:
    """Among the scenes of a video, the one whose background the question names is mostly the best by far."""
    model, processor = load_model()
    sample = make_sample("validation", DIFFICULTIES["easy"], 0)
    assert pictures_per_frame(processor) == 2
    scorer = OwnScorer(model, processor)
    middles = [scene.start + scene.length // 2 for scene in sample.script]
    frames = [sample.pictures[2 * at : 2 * at + 2] for at in middles]
    asked = [question for question in sample.questions if question.kind == "retrieve"]
    features = scorer.encode_frames(frames)
    ranks = []
    for question in asked:
        score = scorer.score_features(features, question.text)
        ranks.append(int((score > score[question.scenes[0]]).sum()))
    assert len(asked) >= 3
    assert np.mean(ranks) < 1.5
    assert scorer.score_features(features, " ").tolist() == [0.0] * len(frames)


def test_a_last_frame_with_one_picture_is_scored_too() -> None:
    model, processor = load_model()
    sample = make_sample("validation", DIFFICULTIES["easy"], 0)
    scorer = OwnScorer(model, processor)
    features = scorer.encode_frames([sample.pictures[:2], sample.pictures[2:3]])
    assert scorer.score_features(features, "which digit in red grid").shape == (2,)


def test_a_scorer_that_gives_no_number_is_refused() -> None:
    with pytest.raises(PromptError, match="NaN"):
        ClipFrames(2, Given(lambda scenes: torch.full((scenes,), torch.nan)))(clip_of([4, 4]), "x")
