"""Real processors of further families, from local files, through SegMo: their own layouts, times and compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_folders import FOLDERS, build_processor, write_folder
from safetensors.torch import save_file
from transformers import Qwen2_5OmniConfig
from video_files import noise_shots, write_file

from segmo.ask.ask import Asker
from segmo.ask.checkpoint import Checkpoint, load
from segmo.ask.context import Context, Request
from segmo.ask.plain_video import PlainVideo
from segmo.ask.settings import Settings
from segmo.errors import OptionError, PromptError
from segmo.integrations.lmms.prompts import Sampling, chat_inputs
from segmo.options import Options
from segmo.pretrained import load_model
from segmo.report.timeline import Timeline
from segmo.video import read

QUESTION = "What happens?"
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four seconds of 48 x 32 pixels in three shots."""
    return str(write_file(tmp_path_factory.mktemp("film") / "film.mp4", noise_shots([15, 10, 15], 48, 32), fps=10))


@pytest.mark.parametrize("family", FOLDERS)
def test_every_familys_prompt_is_its_processors_own(family: str, film: str, tmp_path: Path) -> None:
    loaded = load(write_folder(family, tmp_path))
    way = PlainVideo(Context(loaded, Settings(), None, Timeline(), lambda stage, done, total: None))
    ready = way.prepare(Request(film, QUESTION))
    assert ready.facts.frames == 8
    found, expected = ready.inputs(loaded, QUESTION), inputs_of(loaded, film)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name
    assert loaded.model.generate(**found, max_new_tokens=2, do_sample=False).shape[1] > found["input_ids"].shape[1]
    with pytest.raises(PromptError, match="must not hold that token"):
        way.prepare(Request(film, f"What is {loaded.processor.video_token} here?"))


def inputs_of(loaded: Checkpoint, film: str) -> dict[str, Any]:
    """The processor called as its users call it."""
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    inputs: dict[str, Any] = loaded.processor(
        text=[loaded.processor.apply_chat_template(messages, add_generation_prompt=True)],
        videos=[read(film, 2.0, max_pixels=loaded.max_pixels).frames],
        video_metadata=[{"total_num_frames": 8, "fps": 2.0, "frames_indices": list(range(8))}],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return inputs


@pytest.mark.parametrize("family", ["video_llama_3", "internvl"])
def test_prompts_of_a_real_processor_are_cut(family: str, film: str, tmp_path: Path) -> None:
    loaded = load(write_folder(family, tmp_path))
    with pytest.raises(OptionError, match="give a CLIP or SigLIP model"):
        Asker(loaded, Settings(frames=2))
    answer = Asker(loaded, Settings(Options(keep=0.25), new_tokens=2)).ask(film, QUESTION)
    count = sum(token in loaded.placeholders for token in inputs_of(loaded, film)["input_ids"][0].tolist())
    assert answer.tokens["video"] == count
    assert answer.tokens["kept"] == count // 4


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
