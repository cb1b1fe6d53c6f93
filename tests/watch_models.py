"""Tiny models that watch, and what they are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ask_models import FAMILIES, write_model
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, AutoProcessor

Loaded = tuple[Any, Any]


def watched_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """A tiny model and its processor of each family."""
    found = {}
    for family in FAMILIES:
        folder = write_model(family, tmp_path_factory.mktemp(family))
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        processor: Any = AutoProcessor
        found[family] = (model, processor.from_pretrained(folder))
    return found


def frames_of(scenes: int, seed: int = 0, each: int = 4) -> NDArray[np.uint8]:
    """Scenes that hold still but for noise, (scenes * each, 32, 32, 3)."""
    noise = np.random.default_rng(seed)
    still = noise.integers(0, 256, (scenes, 1, 32, 32, 3))
    return np.clip(still + noise.integers(-4, 5, (scenes, each, 32, 32, 3)), 0, 255).reshape(-1, 32, 32, 3).astype("u1")


def whole_prompt(processor: Any, frames: NDArray[np.uint8], question: str, fps: float = 2.0) -> dict[str, Any]:
    """A processor's outputs for one question about frames."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    metadata = {"total_num_frames": len(frames), "fps": fps, "frames_indices": list(range(len(frames)))}
    return dict(
        processor(text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
    )


def new_ids(model: Any, inputs: dict[str, Any], **more: Any) -> torch.Tensor:
    """Greedy ids behind a prompt."""
    found: torch.Tensor = model.generate(**inputs, max_new_tokens=5, do_sample=False, **more)
    return found[:, inputs["input_ids"].shape[1] :]
