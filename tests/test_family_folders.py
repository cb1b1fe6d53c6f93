"""Real processors of further families, from local files, through SegMo: their own layouts, times and compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_folders import build_processor, write_folder
from safetensors.torch import save_file
from transformers import AutoProcessor, Qwen2_5OmniConfig
from video_files import noise_shots, write_file

import segmo
from segmo.integrations.lmms.prompts import Sampling, chat_inputs
from segmo.pretrained import load_model

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four seconds of 48 x 32 pixels in three shots."""
    return str(write_file(tmp_path_factory.mktemp("film") / "film.mp4", noise_shots([15, 10, 15], 48, 32), fps=10))


def inputs_of(processor: Any, film: str, question: str = "What happens?") -> Any:
    parts = [{"type": "video", "url": film}, {"type": "text", "text": question}]
    return chat_inputs(processor, [{"role": "user", "content": parts}], Sampling(fps=2.0))[1]


@pytest.mark.parametrize("family", ["qwen2_5_omni", "video_llama_3", "internvl"])
def test_prompts_of_a_real_processor_are_cut(family: str, film: str, tmp_path: Path) -> None:
    """With keep=1 the tokens of the model as it is; with less, as many as asked for of those that the prompt has."""
    folder = write_folder(family, tmp_path)
    auto: Any = AutoProcessor
    processor, model = auto.from_pretrained(folder), load_model(folder)
    inputs = inputs_of(processor, film)
    given = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **given)
    segmo.compile(model, keep=1.0, segments=1)
    assert model.generate(**inputs, **given).tolist() == expected.tolist()
    segmo.compile(model, keep=0.25)
    model.generate(**inputs, **given)
    tokens = segmo.last_report().to_dict()["tokens"]
    placeholder = getattr(model.config, "video_token_id", None) if family != "internvl" else model.config.image_token_id
    assert tokens["video"] == int((inputs["input_ids"] == placeholder).sum())
    assert tokens["kept"] == tokens["video"] // 4


def test_of_an_omni_model_the_part_that_writes_text_is_read(tmp_path: Path) -> None:
    """Its folder holds a config and weights of all parts, as it is published."""
    thinker = load_model(write_folder("qwen2_5_omni", tmp_path / "thinker"))
    config = Qwen2_5OmniConfig(thinker_config=thinker.config.to_dict())
    config.save_pretrained(tmp_path)
    weights = {f"thinker.{name}": tensor for name, tensor in thinker.state_dict().items()}
    save_file({**weights, "talker.weight": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = load_model(tmp_path)
    assert type(found) is type(thinker)
    expected = thinker.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_the_step_of_a_part_of_a_film_is_told(film: str) -> None:
    processor = build_processor("qwen2_5_omni")
    parts = [{"type": "video", "url": film, "start_time": 1.0}, {"type": "text", "text": "What happens?"}]
    messages = [{"role": "user", "content": parts}]
    for fps in (2.0, 1.0):
        inputs = chat_inputs(processor, messages, Sampling(fps=fps))[1]
        assert inputs["video_second_per_grid"].tolist() == [2 / fps]
