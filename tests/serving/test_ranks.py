"""Two ranks over gloo answer as one does, with the vision encoder split between them or its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import tiny
from serving.conftest import stop
from serving.engine import MARKS, answers, start
from serving.test_families import film, metadata

PROMPTS = (f"{MARKS} w10 w11 w12", f"{MARKS} w13 {MARKS} w14", "w15 w16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    tiny.build("qwen3_vl", folder)
    return folder


def said(model: Path, **options: Any) -> list[tuple[list[int], list[Any]]]:
    """Tokens and log-probabilities, in one batch."""
    requests: list[Any] = []
    for text in PROMPTS:
        films = [film(16, seed) for seed in range(text.count(MARKS))]
        shown = [(f, metadata(len(f)) | {"do_sample_frames": False}) for f in films]
        requests.append({"prompt": text, "multi_modal_data": {"video": shown} if shown else {}})
    engine = start(model, max_model_len=1024, max_num_batched_tokens=1024, video_pruning_rate=0.5, **options)
    try:
        outputs = answers(engine, requests, 3)
    finally:
        stop(engine)
    return [(list(output.outputs[0].token_ids), output.outputs[0].logprobs) for output in outputs]


@pytest.fixture(scope="module")
def alone(model: Path) -> Any:
    return said(model)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["weights", "data"])
def test_two_ranks_answer_as_one(model: Path, alone: Any, mode: str) -> None:
    both = said(model, tensor_parallel_size=2, mm_encoder_tp_mode=mode)
    for (tokens, rows), (expected, before) in zip(both, alone, strict=True):
        assert tokens == expected
        for now, then in zip(rows, before, strict=True):
            shared = now.keys() & then.keys()
            assert len(shared) >= 3
            assert all(abs(now[token].logprob - then[token].logprob) < 1e-3 for token in shared)
