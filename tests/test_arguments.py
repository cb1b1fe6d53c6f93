"""What SegMo adds to a call must be a named parameter of what receives it, wherever it adds something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, prompt

import segmo
from segmo.ask.ask import Asker
from segmo.ask.checkpoint import load
from segmo.ask.settings import Settings
from segmo.compat.arguments import require_parameters, with_arguments
from segmo.demo import prefill
from segmo.errors import SegMoError, VersionError
from segmo.options import Options
from segmo.runtime.distributed.vision import encode_video
from segmo.sceneqa.files import write_sample
from segmo.sceneqa.model import build_prompts
from segmo.sceneqa.task import DIFFICULTIES, make_sample

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

REFUSED = r"\.forward has no parameter mm_encoder_outputs.*transformers>=5\.18"


def older(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with a ``forward`` as transformers had it up to 5.17: it does not know the argument, and drops it."""
    for kind in (type(model), type(model.base_model)):
        forward = kind.forward

        def without(self: Any, input_ids: Any = None, *, forward: Any = forward, **kwargs: Any) -> Any:
            kwargs.pop("mm_encoder_outputs", None)
            return forward(self, input_ids, **kwargs)

        monkeypatch.setattr(kind, "forward", without)
    return model


def test_a_direct_call_is_refused_and_does_not_drop_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = older(build("qwen2_vl"), monkeypatch), prompt("qwen2_vl")
    segmo.compile(model, keep=1.0)
    with torch.no_grad(), pytest.raises(VersionError, match=REFUSED) as caught:
        model(**inputs)
    assert isinstance(caught.value, SegMoError)


def test_every_other_place_that_hands_features_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = older(build("qwen2_5_vl"), monkeypatch), prompt("qwen2_5_vl")
    with pytest.raises(VersionError, match=REFUSED):
        encode_video(model, inputs)
    with pytest.raises(VersionError, match=REFUSED):
        prefill.encode_video(model, inputs)


def test_the_trained_model_s_prompts_and_questions_about_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded, sample = load(), make_sample("test", DIFFICULTIES["easy"], 1, 2)
    older(loaded.model, monkeypatch)
    with pytest.raises(VersionError, match=REFUSED):
        build_prompts(loaded.model, loaded.processor, sample.pictures, sample.questions)
    clip = write_sample(sample, tmp_path / "clip.mp4", crf=10)
    with pytest.raises(VersionError, match=REFUSED):
        Asker(loaded, Settings(Options(), new_tokens=1)).ask(clip, "which digit")


def test_added_arguments_must_be_named_by_both_receivers() -> None:
    class Base:
        def forward(self, pixels: Any = None, **kwargs: Any) -> None: ...

    class Whole:
        base_model = Base()

        def forward(self, pixels: Any = None, mm_encoder_outputs: Any = None, **kwargs: Any) -> None: ...

    assert with_arguments(Whole(), {"a": 1}, pixels=2) == {"a": 1, "pixels": 2}
    with pytest.raises(VersionError, match=r"Base\.forward has no parameter mm_encoder_outputs"):
        require_parameters(Whole(), "pixels", "mm_encoder_outputs")
