"""vLLM engines for the tests, small and on the CPU, and prompts for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

# In the tests' own process, so that they can look at what the model did.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
os.environ.update(ENVIRONMENT)

MARKS = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def start(model: Path, **options: Any) -> Any:
    """An engine that keeps a quarter of the video tokens, unless ``options`` say otherwise."""
    from vllm import LLM

    settings: dict[str, Any] = {
        "video_pruning_rate": 0.75,
        "max_model_len": 4096,
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": 128 << 20,
        "limit_mm_per_prompt": {"video": 3, "image": 2},
        "max_num_seqs": 16,
        "disable_log_stats": True,
    }
    return LLM(str(model), **settings | options)


def turn(text: str) -> str:
    """A prompt in the words of SceneQA's chat template."""
    return f"<|im_start|>{text}<|im_end|>"


def ask(question: str, *videos: np.ndarray, images: Any = (), prompt: str | None = None, **options: Any) -> Any:
    """A request: the videos in front of the question, or as ``prompt`` says."""
    data: dict[str, Any] = {}
    if videos:
        data["video"] = list(videos)
    if len(images):
        data["image"] = list(images)
    text = prompt if prompt is not None else turn(MARKS * len(videos) + question)
    asked: dict[str, Any] = {"prompt": text}
    if data:
        asked["multi_modal_data"] = data
    if options:
        asked["mm_processor_kwargs"] = options
    return asked


def answers(engine: Any, requests: list[Any], tokens: int = 4) -> list[Any]:
    """What an engine says to requests, in one batch: greedy, with log-probabilities."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=tokens, temperature=0, logprobs=5, ignore_eos=True)
    return list(engine.generate(requests, sampling, use_tqdm=False))
