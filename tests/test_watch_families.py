"""Families beyond the four of ``test_watch.py``: a memory that sees everything is the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import video_families
from family_folders import build_model, build_processor
from test_watch import error, generate
from torch import Tensor
from video_families import expect_family
from watch_models import frames_of, new_ids, whole_prompt

import segmo
from segmo.errors import OptionError, PromptError
from segmo.memory.known import KNOWN, video_token

HERE = sorted(set(KNOWN) - {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"})
FRAMES = 10


def behind(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The ids behind the last video token."""
    ids = inputs["input_ids"][0]
    return ids[int((ids == video_token(model)).nonzero()[-1]) + 1 :]


@pytest.mark.parametrize("family", HERE)
def test_everything_remembered_is_the_model(family: str) -> None:
    expect_family(family)
    model, inputs = video_families.build(family), dict(video_families.prompt(family, frames=FRAMES))
    question = behind(model, inputs)
    ids, logits = generate(model, inputs)
    memory = segmo.watch(model, None, inputs, segments=1, keep=1.0)
    again, found = generate(model, memory.inputs(question))
    assert error(found, logits) < 1e-5
    assert torch.equal(again, ids)
    assert memory.summary()["frames"] == FRAMES
    cut = segmo.watch(model, None, inputs, keep=0.3)
    assert cut.summary()["segments"] > 1
    assert cut.ask(question, max_new_tokens=2).shape == (2,)
    if not KNOWN[family].words:
        with pytest.raises(OptionError, match=f"of {family}, a memory takes no frames"):
            segmo.watch(model, object(), inputs)
    if KNOWN[family].text_inside:
        with pytest.raises(PromptError, match="extend with frames"):
            memory.extend(inputs)


@pytest.mark.parametrize("family", [family for family in HERE if KNOWN[family].words])
def test_frames_in_parts_are_the_model_itself(family: str) -> None:
    expect_family(family)
    processor = build_processor(family)
    model = build_model(family, processor)
    frames, question = frames_of(3), "Who walks past the bicycle?"
    inputs = whole_prompt(processor, frames, question)
    wanted = processor.tokenizer.decode(new_ids(model, inputs)[0], skip_special_tokens=True).strip()
    memory = segmo.watch(model, processor, frames[:4], fps=2.0, segments=1, keep=1.0)
    memory.extend(frames[4:])
    watched = torch.cat([block.ids for block in memory.watcher.held()])
    assert watched.tolist() == inputs["input_ids"][0, : len(watched)].tolist()
    assert memory.ask(question, max_new_tokens=5) == wanted


@pytest.mark.parametrize("family", ["qwen3_5", "internvl"])
def test_others_are_refused_by_name(family: str) -> None:
    expect_family(family)
    model = video_families.build(family)
    with pytest.raises(OptionError, match=f"family '{family}'; known: qwen2_vl"):
        segmo.watch(model, None, video_families.prompt(family))
