"""A chat of lmms-eval becomes a model's inputs; this half of the plugin needs no lmms-eval."""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor
from video_files import noise_shots, write_file

from segmo.errors import OptionError, PromptError, SegMoError
from segmo.integrations.lmms.arguments import family_names, generation, of_family, parse_options, stopped
from segmo.integrations.lmms.prompts import Sampling, chat_inputs, show
from segmo.options import Options
from segmo.sceneqa.model import MODEL_PATH


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four seconds of 48 x 32 pixels at ten frames a second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_file(path, noise_shots([20, 20], 48, 32), fps=10)
    return str(path)


def test_the_entry_point_is_there() -> None:
    (entry,) = {entry.value for entry in entry_points(group="lmms_eval.models") if entry.name == "segmo"}
    assert entry == "segmo.integrations.lmms.manifest:manifest"


def test_frames_at_a_rate_up_to_a_number(film: str) -> None:
    shown = show(film, Sampling(fps=2.0, most=64))
    assert shown.frames.shape == (8, 32, 48, 3)
    assert shown.places == list(range(8))
    few = show(film, Sampling(fps=2.0, most=3))
    assert len(few.frames) == 3


@pytest.mark.parametrize("as_mapping", [False, True])
def test_a_part_of_a_file(film: str, as_mapping: bool) -> None:
    whole = show(film, Sampling())
    if as_mapping:
        part = show({"path": film, "video_start": 1.0, "video_end": 2.0}, Sampling())
    else:
        part = show(film, Sampling(), 1.0, 2.0)
    assert part.places == [2, 3, 4]
    assert np.array_equal(part.frames, whole.frames[2:5])
    with pytest.raises(PromptError, match="no frame between 90"):
        show(film, Sampling(), 90.0)


def test_frames_that_a_task_has_read_itself(film: str) -> None:
    frames = show(film, Sampling()).frames
    assert np.array_equal(show(list(frames), Sampling()).frames, frames)


def test_a_chat_with_a_video(film: str) -> None:
    load: Any = AutoProcessor.from_pretrained
    processor = load(MODEL_PATH)
    parts = [{"type": "video", "url": film}, {"type": "text", "text": "which digit in red grid"}]
    text, inputs = chat_inputs(processor, [{"role": "user", "content": parts}], Sampling())
    assert "which digit in red grid" in text
    assert inputs["video_grid_thw"].tolist() == [[4, 4, 6]]
    video = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
    assert int((inputs["input_ids"] == video).sum()) == 4 * 6
    with pytest.raises(PromptError, match="type 'audio'"):
        chat_inputs(processor, [{"role": "user", "content": [{"type": "audio", "url": "x.wav"}]}], Sampling())


def test_model_arguments_are_segmos_options() -> None:
    assert parse_options({"keep": 1, "use_cache": True}).segments == 1
    assert parse_options({"keep": 1, "segments": "equal:4"}).segments == "equal:4"
    assert parse_options({"keep": 0.25}).segments == "scene"
    with pytest.raises(OptionError, match="did you mean 'keep'"):
        parse_options({"kep": 0.5})
    assert generation({"temperature": 0, "max_new_tokens": 16}) == {"max_new_tokens": 16, "do_sample": False}
    assert generation({"temperature": 0.7, "num_beams": 2})["do_sample"] is True


def test_texts_of_a_command_line_are_understood() -> None:
    """lmms-eval leaves quotes and brackets as they are."""
    found = parse_options({"disable": '"trim-last-layer, reuse-buffers"', "pipeline": "'select-tokens'"})
    assert found.disable == ("trim-last-layer", "reuse-buffers")
    assert found.pipeline == "select-tokens"
    assert parse_options({"disable": "[trim-last-layer]"}).disable == ("trim-last-layer",)
    assert parse_options({"pipeline": "[select-tokens,trim-last-layer]"}).pipeline == "select-tokens,trim-last-layer"
    for wrong in ({"disable": "trim-last-lair"}, {"pipeline": "select-token"}):
        with pytest.raises(SegMoError, match="did you mean"):
            parse_options(wrong)
    for name in (field.name for field in dataclasses.fields(Options)):
        default = getattr(Options(), name)
        assert getattr(parse_options({name: default}), name) == default


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (["\n\n"], "One.\n\nTwo. END three"),
        ("\n\n", "One.\n\nTwo. END three"),
        (["\n\n", "END"], "One.\n\nTwo. "),
        ("END", "One.\n\nTwo. "),
        ([""], "One.\n\nTwo. END three"),
        (None, "One.\n\nTwo. END three"),
        (["Two", "One"], ""),
    ],
)
def test_the_separator_of_examples_is_no_stop(until: Any, expected: str) -> None:
    assert stopped("One.\n\nTwo. END three", until) == expected


def test_settings_of_a_family() -> None:
    names = family_names("qwen3_vl_moe")
    assert of_family({"default": {"a": 1}, "qwen3_vl": {"a": 2}}, names) == {"a": 2}
    assert of_family({"segmo": {"a": 3}, "qwen3_vl": {"a": 2}}, names) == {"a": 3}
    assert of_family({"default": {"a": 1}, "qwen_vl": {"a": 2}}, names) is None
    assert of_family({"llava_hf": {"a": 4}}, family_names("llava_onevision")) == {"a": 4}
    assert of_family(None, names) is None
