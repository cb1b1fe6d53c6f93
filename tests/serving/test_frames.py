"""The video loader that chooses frames by scene: which ones, and what a model is told of their times."""

from __future__ import annotations

import numpy as np
import pytest
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
from vllm.plugins import load_general_plugins

from segmo.errors import OptionError, PromptError
from segmo.sceneqa.files import write_sample
from segmo.sceneqa.task import DIFFICULTIES, samples
from segmo.video import read


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    (sample,) = samples("test", DIFFICULTIES["easy"], 1)
    return write_sample(sample, tmp_path_factory.mktemp("film") / "film.mp4").read_bytes()


def test_every_scene_has_frames_and_they_are_those_of_the_film(film: bytes) -> None:
    load_general_plugins()
    loader = VIDEO_LOADER_REGISTRY.load("segmo")
    whole = read(film, 2.0)
    for wanted in (-1, 1000, 16, 12, 7, 1):
        frames, told = loader.load_bytes(film, num_frames=wanted)
        places = told["frames_indices"]
        count = len(whole.frames) if wanted in (-1, 1000) else max(wanted // 2 * 2, 2)
        assert len(places) == count
        assert places == sorted({*places})
        assert all(second == first + 1 for first, second in zip(places[::2], places[1::2], strict=True))
        assert np.array_equal(frames, whole.frames[places])
        assert (told["total_num_frames"], told["fps"]) == (len(whole.frames), whole.fps)
        assert told["do_sample_frames"] is False
        if count >= 2 * len(whole.scenes):
            assert {*whole.scene_F[places]} == {*range(len(whole.scenes))}


def test_a_long_film_is_spread_over_few_frames(film: bytes) -> None:
    frames, told = VIDEO_LOADER_REGISTRY.load("segmo").load_bytes(film, max_frames=20, num_frames=10)
    assert len(frames) == 10
    assert told["total_num_frames"] == 20
    assert max(told["frames_indices"]) < 20


def test_what_cannot_be(film: bytes) -> None:
    loader = VIDEO_LOADER_REGISTRY.load("segmo")
    with pytest.raises(OptionError, match=r"num_frames .* is 0"):
        loader.load_bytes(film, num_frames=0)
    with pytest.raises(OptionError, match=r"fps .* is -1"):
        loader.load_bytes(film, fps=-1)
    with pytest.raises(OptionError, match="no option colour"):
        loader.load_bytes(film, colour=1)
    with pytest.raises(PromptError):
        loader.load_bytes(b"this is no film")
