"""Short clips and chosen frames: what a model is told of their times is true of the whole film."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ask_models import write_model
from video_files import noise_shots, write_file

from segmo.ask.ask import Asker
from segmo.ask.cache import TensorCache as Store
from segmo.ask.checkpoint import Checkpoint, load
from segmo.ask.chosen_frames import ChosenFrames as Chosen
from segmo.ask.context import Context, Request
from segmo.ask.encode import process
from segmo.ask.settings import Settings
from segmo.integrations.lmms.prompts import Sampling, chat_inputs
from segmo.options import Options
from segmo.report.timeline import Timeline
from segmo.video import Clip, read

QUESTION = "What happens?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    families = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
    return {name: load(write_model(name, tmp_path_factory.mktemp(name)), device="cpu") for name in families}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty seconds, a shot each second."""
    return write_file(tmp_path_factory.mktemp("film") / "film.mp4", noise_shots([10] * 30, 48, 32), fps=10, g="10")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.4 seconds, which give one frame."""
    return write_file(tmp_path_factory.mktemp("short") / "short.mp4", noise_shots([10], 48, 32), fps=25)


def written(loaded: Checkpoint, inputs: dict[str, Any]) -> str:
    text: str = loaded.processor.tokenizer.decode(inputs["input_ids"][0])
    return text


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_one_frame_is_enough(models: dict[str, Checkpoint], short: Path, family: str) -> None:
    loaded = models[family]
    clip = read(short, 2.0, max_pixels=loaded.max_pixels)
    assert len(clip.frames) == 1
    inputs = process(loaded, clip, QUESTION)
    tokens = int((inputs["input_ids"] == loaded.video_token).sum())
    several = read(short, 25.0, max_pixels=loaded.max_pixels).only([0, 0])
    twice = process(loaded, several, QUESTION)
    if family == "llava_onevision":
        assert tokens == (int((twice["input_ids"] == loaded.video_token).sum()) - 1) // 2 + 1
        return
    torch.testing.assert_close(inputs["pixel_values_videos"], twice["pixel_values_videos"])
    assert inputs["video_grid_thw"].tolist() == twice["video_grid_thw"].tolist()
    if family == "qwen3_vl":
        assert "<0.0 seconds>" in written(loaded, inputs)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_short_clip_is_answered(models: dict[str, Checkpoint], short: Path) -> None:
    options = Options(keep=0.5, segments=1, pipeline="select-tokens")
    found = Asker(models["qwen3_vl"], Settings(options, new_tokens=1)).ask(short, QUESTION)
    assert found.facts.frames == 1
    assert found.tokens["video"] > 0


def test_an_odd_number_of_chosen_frames_of_which_one_is_missing(
    models: dict[str, Checkpoint], film: Path, tmp_path: Path
) -> None:
    """The last frame stands for itself alone, and has to be encoded alone."""
    loaded, store = models["qwen3_vl"], Store(tmp_path)
    settings = Settings(Options(balance=1.0), 1.5, frames=23, workers=1)  # all 45 pictures in 23 frames

    def asked() -> tuple[Any, Any]:
        way = Chosen(Context(loaded, settings, store, Timeline(), lambda stage, done, total: None))
        request = Request(film, QUESTION)
        ready = way.prepare(request)
        return way.features(request, ready)[0], ready

    first, ready = asked()
    assert len(ready.wanted.numbers) == 45
    (tmp_path / f"{ready.wanted.keys[-1]}.safetensors").unlink()
    again, _ = asked()
    torch.testing.assert_close(again.pooled, first.pooled)
    assert again.text.ids.tolist() == first.text.ids.tolist()


def part(clip: Clip, start: float, end: float) -> Clip:
    return clip.only(np.flatnonzero((clip.seconds >= start) & (clip.seconds < end)))


@pytest.mark.parametrize(
    ("fps", "choose", "step"),
    [
        (2.0, lambda clip: clip, 1.0),
        (2.0, lambda clip: part(clip, 10, 20), 1.0),
        (2.0, lambda clip: clip.only(range(0, 60, 4)), 4.0),
        (1.0, lambda clip: part(clip, 5, 30), 2.0),
        (3.0, lambda clip: part(clip, 10, 21), 2 / 3),
        (2.0, lambda clip: clip.only([21]), 1.0),
    ],
)
def test_the_step_of_a_grid_is_that_of_the_frames_in_the_film(
    models: dict[str, Checkpoint], film: Path, fps: float, choose: Any, step: float
) -> None:
    clip = choose(read(film, fps, scenes=None))
    inputs = process(models["qwen2_5_vl"], clip, QUESTION)
    assert list(inputs["second_per_grid_ts"]) == [step]  # to the last bit: positions are cut off, not rounded


@pytest.mark.parametrize("way", ["process", "start and end", "lmms", "mapping"])
def test_a_part_of_a_film_has_its_own_times(models: dict[str, Checkpoint], film: Path, way: str) -> None:
    found = {}
    for family in ("qwen2_5_vl", "qwen3_vl"):
        loaded = models[family]
        if way == "process":
            found[family] = process(loaded, part(read(film, 2.0), 10, 20), QUESTION)
        elif way == "start and end":
            found[family] = process(loaded, read(film, 2.0, start=10, end=19.5), QUESTION)
        else:
            url: Any = str(film) if way == "lmms" else {"url": str(film), "video_start": 10.0, "video_end": 19.5}
            times = {"start_time": 10.0, "end_time": 19.5} if way == "lmms" else {}
            content = [{"type": "video", "url": url, **times}, {"type": "text", "text": QUESTION}]
            chat = [{"role": "user", "content": content}]
            found[family] = dict(chat_inputs(loaded.processor, chat, Sampling(2.0, 64))[1])
    assert list(found["qwen2_5_vl"]["second_per_grid_ts"]) == [1.0]
    text = written(models["qwen3_vl"], found["qwen3_vl"])
    stamps = [part.split(" seconds>")[0] for part in text.split("<")[1:] if " seconds>" in part]
    assert [float(stamp) for stamp in stamps] == pytest.approx([10.25 + number for number in range(10)], abs=0.06)


def test_a_part_of_a_long_film_has_as_many_frames_as_are_allowed(film: Path) -> None:
    from segmo.integrations.lmms.prompts import show

    shown = show(str(film), Sampling(fps=2.0, most=16), 10.0, 14.0)
    assert shown.places == [20, 21, 22, 23, 24, 25, 26, 27, 28]
