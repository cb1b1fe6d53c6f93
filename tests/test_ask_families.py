"""The way from a file to the model's inputs is that of transformers itself, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ask_models import FAMILIES, write_model
from video_files import noise_shots, write_file

from segmo.ask import encode as encoding
from segmo.ask.checkpoint import Checkpoint, load
from segmo.ask.encode import process
from segmo.ask.features import Features
from segmo.ask.rank_encode import encode
from segmo.errors import OptionError, PromptError
from segmo.video import Clip, read

FIRST, SECOND = "What happens?", "Which animal wakes up, and what does it do then? <0.5 seconds> user"


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(write_model(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = write_file(tmp_path_factory.mktemp("clip") / "clip.mp4", noise_shots([30, 45, 20, 30], 48, 32))
    return read(path, 4.0)


@pytest.fixture(scope="module")
def features(loaded: Checkpoint, clip: Clip) -> Features:
    step = encoding.PATCHES, encoding.FRAMES
    encoding.PATCHES, encoding.FRAMES = 3 * 96, 3  # several parts, the last one shorter
    try:
        return encode(loaded, process(loaded, clip, FIRST), clip, FIRST)
    finally:
        encoding.PATCHES, encoding.FRAMES = step


def whole(loaded: Checkpoint, clip: Clip, question: str) -> dict[str, Any]:
    """The processor's own inputs with the vision encoder's own features of the whole video at once."""
    inputs = process(loaded, clip, question)
    given = {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw") if name in inputs}
    with torch.no_grad():
        video = loaded.model.base_model.get_video_features(**given, return_dict=True)
    return {**{n: v for n, v in inputs.items() if n != "pixel_values_videos"}, "mm_encoder_outputs": {"video": video}}


@pytest.mark.parametrize("question", [FIRST, SECOND])
def test_prompts_of_further_questions_are_the_processors_own(
    loaded: Checkpoint, clip: Clip, features: Features, question: str
) -> None:
    expected, found = process(loaded, clip, question), features.inputs(loaded, question)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts"):
        assert (name in expected) == (name in found)
        if name in expected:
            torch.testing.assert_close(torch.as_tensor(expected[name]), found[name])


def test_features_in_parts_are_those_of_the_whole(loaded: Checkpoint, clip: Clip, features: Features) -> None:
    expected = whole(loaded, clip, FIRST)["mm_encoder_outputs"]["video"]
    found = features.inputs(loaded, FIRST)["mm_encoder_outputs"]["video"]
    for one, other in zip(expected.pooler_output, found.pooler_output, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    layers = getattr(expected, "deepstack_features", None) or []
    assert len(layers) == len(features.deepstack)
    for one, other in zip(layers, features.deepstack, strict=True):
        torch.testing.assert_close(torch.cat(one), other, rtol=1e-4, atol=1e-5)


def test_generated_tokens_are_those_of_transformers_own_way(loaded: Checkpoint, clip: Clip, features: Features) -> None:
    inputs = process(loaded, clip, SECOND)
    expected = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    found = loaded.model.generate(**features.inputs(loaded, SECOND), max_new_tokens=4, do_sample=False)
    assert found.tolist() == expected.tolist()


def test_the_form_on_disk_gives_the_same_inputs(loaded: Checkpoint, features: Features) -> None:
    again = Features.from_disk(*features.to_disk())
    assert again.facts == features.facts
    expected, found = features.inputs(loaded, SECOND), again.inputs(loaded, SECOND)
    assert expected.keys() == found.keys()
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    one, other = (inputs["mm_encoder_outputs"]["video"] for inputs in (expected, found))
    assert torch.equal(torch.cat(tuple(one.pooler_output)), torch.cat(tuple(other.pooler_output)))


def test_a_question_with_the_video_token_is_refused(loaded: Checkpoint, features: Features) -> None:
    with pytest.raises(PromptError, match="must not hold that token"):
        features.inputs(loaded, "What is <|video_pad|> here?")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"no config.json|no Video LLM"):
        load(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(OptionError, match=r"no config.json|no Video LLM"):
        load(tmp_path)
