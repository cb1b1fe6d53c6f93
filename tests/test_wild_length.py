"""Prompts with more positions than the model is made for: a warning with both numbers and the frames that fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ask_models import write_model
from hypothesis import given
from hypothesis import strategies as st
from models import CELLS, FAMILIES, build, prompt
from video_files import noise_shots, write_file

import segmo
from segmo.ask.ask import Asker
from segmo.ask.cache import TensorCache
from segmo.ask.checkpoint import load
from segmo.ask.console import sentences
from segmo.ask.room import fitted
from segmo.ask.settings import Settings
from segmo.calls.length import needed, position_limit, warn_if_too_long
from segmo.video import read

MODELS = {family: build(family) for family in FAMILIES}
BOTH = re.compile(r"needs ([\d,]+) positions, and the model is made for ([\d,]+)")
FRAMES = re.compile(r"; ([\d,]+) of the ([\d,]+) frames fit \(segmo run: --max-frames \1\)")


@contextmanager
def limit(model: Any, positions: int) -> Iterator[None]:
    text = model.config.get_text_config()
    before, text.max_position_embeddings = text.max_position_embeddings, positions
    try:
        yield
    finally:
        text.max_position_embeddings = before


def call(family: str, frames: int, question: int = 5) -> dict[str, Any]:
    """The arguments with which ``generate`` calls a model for its prefill."""
    inputs = prompt(family, frames=frames, question=question)
    if family != "llava_onevision":
        inputs["position_ids"], _ = MODELS[family].model.get_rope_index(
            **{name: inputs[name] for name in ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask")}
        )
    return inputs


def said(family: str, inputs: dict[str, Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_if_too_long(MODELS[family], inputs)
    return [str(each.message) for each in found]


@pytest.mark.parametrize("family", FAMILIES)
@given(frames=st.integers(1, 20), question=st.integers(1, 9), short=st.integers(1, 40))
def test_both_numbers_are_named_and_the_named_frames_fit(family: str, frames: int, question: int, short: int) -> None:
    inputs = call(family, frames, question)
    positions = inputs.get("position_ids")
    total = inputs["input_ids"].shape[1] if positions is None else int(positions.max()) + 1
    with limit(MODELS[family], total):
        assert said(family, inputs) == []
    room = max(1, total - short)
    with limit(MODELS[family], room):
        (text,) = said(family, inputs)
        numbers = BOTH.search(text)
        assert numbers is not None
        assert [int(number.replace(",", "")) for number in numbers.groups()] == [total, room]
        found = FRAMES.search(text)
        if found is None:
            assert "no frame fits" in text
            return
        fits, all_frames = (int(number.replace(",", "")) for number in found.groups())
        step = 1 if family == "llava_onevision" else 2  # Qwen's models join two sampled frames
        assert all_frames == frames * step
        assert 0 < fits < all_frames
        assert fits % step == 0
        assert said(family, call(family, fits // step, question)) == []
        more = call(family, fits // step + 1, question)
        assert said(family, more) != [] or family == "qwen3_vl"


def test_the_numbers_of_a_real_configuration() -> None:
    """768 frames of LLaVA-OneVision 0.5B: 27 x 27 patches a frame, pooled to 14 x 14."""
    from transformers import LlavaOnevisionConfig

    config = LlavaOnevisionConfig()
    config.text_config.max_position_embeddings = 32768
    config.vision_config.image_size, config.vision_config.patch_size = 384, 14
    ids = torch.full((1, 768 * 196 + 1), config.video_token_id)
    need = needed(SimpleNamespace(config=config), {"input_ids": ids})
    assert need is not None
    assert (need.needed, need.limit, need.frames, need.fits) == (150_529, 32_768, 768, 167)


def test_a_stretched_embedding_reaches_as_far_as_it_was_stretched() -> None:
    text = SimpleNamespace(max_position_embeddings=32768, rope_parameters=None)
    assert position_limit(text) == 32768
    text.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert position_limit(text) == 131072
    assert position_limit(SimpleNamespace()) is None


@pytest.mark.usefixtures("fresh_dynamo")
def test_generate_says_it_once_and_a_later_turn_counts_what_was_seen() -> None:
    family = "llava_onevision"
    model, inputs = segmo.compile(build(family), keep=0.5), prompt(family)
    length = inputs["input_ids"].shape[1]
    given = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    with limit(model, length - CELLS[family]):
        with pytest.warns(UserWarning, match=f"needs {length} positions.*5 of the 6 frames fit") as found:
            out = model.generate(**inputs, **given)
        assert sum("positions" in str(each.message) for each in found) == 1
        more = torch.cat([out.sequences, torch.full((1, 4), 20)], 1)
        with pytest.warns(UserWarning, match=f"needs {more.shape[1]} positions.*show fewer frames"):
            model.generate(more, attention_mask=torch.ones_like(more), past_key_values=out.past_key_values, **given)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("film") / "film.mp4", noise_shots([30, 45, 20, 30], 48, 32))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.families("llava_onevision", "qwen3_vl")
def test_a_run_shows_as_many_frames_as_fit_and_says_so(family: str, film: Path, tmp_path: Path) -> None:
    """By the program's own classes; the same question finds the same features."""
    loaded = load(write_model(family, tmp_path / family))

    def asker(**more: Any) -> Asker:
        return Asker(loaded, Settings(fps=4.0, new_tokens=1, **more), TensorCache(tmp_path / "cache"))

    whole = asker().ask(film, "What happens?")
    assert not [note for note in whole.facts.notes if "positions" in note]
    room = whole.tokens["prompt"] - 3 if family == "llava_onevision" else 200
    with limit(loaded.model, room):
        with pytest.warns(UserWarning, match=rf"film.mp4: .* positions, .* made for {room} .* frames fit") as said:
            found = asker().ask(film, "What happens?")
        assert not [each for each in said if "this prompt needs" in str(each.message)]
        assert 0 < found.facts.frames < whole.facts.frames
        assert found.facts.seconds[-1] == whole.facts.seconds[-1]  # of the whole film
        assert any("frames fit" in line for line in sentences(found))
        again = asker().ask(film, "What happens?")
        assert (again.facts, bool(again.cached)) == (found.facts, True)
        with pytest.warns(UserWarning, match="frames fit"):
            longer = asker().ask(film, "What happens in the end of it?")
        assert longer.facts.frames <= found.facts.frames
        with pytest.warns(UserWarning, match="frames fit"):
            chosen = asker(frames=20).ask(film, "What happens?")
        assert chosen.facts.frames <= found.facts.frames
    assert asker().ask(film, "What happens?").facts == whole.facts


def test_a_run_leaves_frames_whose_positions_count_seconds(film: Path, tmp_path: Path) -> None:
    loaded = load(write_model("qwen2_5_vl", tmp_path))
    clip = read(film, 4.0)
    with limit(loaded.model, 10):
        assert fitted(loaded, clip, np.arange(len(clip.frames)), "What happens?")[1] == ""
