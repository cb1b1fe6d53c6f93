"""Requests of every shape, in one engine after another: what is answered depends on the request alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from serving.conftest import stop
from serving.engine import IMAGE, MARKS, answers, ask, start, turn
from serving.reference import largest_difference, next_logprobs, positions_of

from segmo.errors import OptionError, PromptError
from segmo.integrations.vllm import model as plugin
from segmo.sceneqa.model import MODEL_PATH, encode_pictures, load_model
from segmo.sceneqa.task import DIFFICULTIES, samples

TOKENS = 6
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prefix cache": {"enable_prefix_caching": False},
    # Chunks of 64 tokens: a video's range is cut in four, and decode steps of others go along.
    "chunks": {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "max_num_seqs": 4},
}


@pytest.fixture(scope="module")
def shown() -> list[Any]:
    return list(samples("test", DIFFICULTIES["easy"], 3, per_kind=2))


def requests(shown: list[Any]) -> dict[str, Any]:
    """By name, requests of every shape."""
    first, second, third = shown
    one, two = (question.text for question in first.questions[:2])
    pictures = [np.ascontiguousarray(first.pictures[at]) for at in (0, 20)]
    return {
        "a question": ask(one, first.pictures),
        "another question": ask(two, first.pictures),
        "another video": ask(one, second.pictures),
        "text first": ask(one, first.pictures, prompt=turn(one + MARKS)),
        "two videos": ask(one, first.pictures, second.pictures),
        "two of one length and another": ask(one, first.pictures, third.pictures[:20], second.pictures),
        "one video twice": ask(one, first.pictures, first.pictures),
        "an image in front": ask(one, first.pictures, images=pictures[:1], prompt=turn(IMAGE + MARKS + one)),
        "images around": ask(one, first.pictures, images=pictures, prompt=turn(IMAGE + one + MARKS + IMAGE + two)),
        "an image alone": ask(one, images=pictures[:1], prompt=turn(IMAGE + one)),
        "text alone": ask(one),
        "keep more": ask(one, first.pictures, keep=0.5),
        "keep all": ask(one, first.pictures, keep=1.0),
        "blind": ask(one, first.pictures, question_blind=True),
        "a short video": ask(one, first.pictures[:2]),
        "ends in the video": ask(one, first.pictures, prompt=f"<|im_start|>{one}<|video_pad|>"),
    }


@pytest.fixture(scope="module", params=SETTINGS)
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    found = start(MODEL_PATH, **SETTINGS[request.param])
    yield found
    stop(found)


class Reference:
    """transformers on the tokens that the plugin kept, found by what it was asked for."""

    def __init__(self) -> None:
        self.model, self.processor = load_model()

    def logprobs(self, request: Any, kept: list[list[int]], generated: list[int]) -> torch.Tensor:
        """Log-probabilities of what follows, the plugin having kept these tokens of each video."""
        data = request.get("multi_modal_data", {})
        encoded = [encode_pictures(self.model, self.processor, video) for video in data.get("video", [])]
        prepare: Any = self.processor.image_processor
        for image in data.get("image", []):
            inputs = prepare(images=[image], return_tensors="pt")
            with torch.no_grad():
                found: Any = self.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            encoded.append((torch.cat(list(found.pooler_output)), inputs["image_grid_thw"]))
        videos, images = encoded[: len(data.get("video", []))], encoded[len(data.get("video", [])) :]
        tokenizer: Any = self.processor.tokenizer
        config = self.model.config
        ids: list[int] = []
        stays: list[bool] = []
        features, grids = [], []
        for id_ in tokenizer(request["prompt"])["input_ids"]:
            if id_ not in (config.video_token_id, config.image_token_id):
                ids.append(id_)
                stays.append(True)
                continue
            feature, grid = (videos if id_ == config.video_token_id else images).pop(0)
            chosen = set(kept.pop(0)) if id_ == config.video_token_id else set(range(len(feature)))
            ids += [id_] * len(feature)
            stays += [at in chosen for at in range(len(feature))]
            features.append(feature)
            time, height, width = (int(size) for size in grid[0])
            grids.append((time, height // 2, width // 2))
        media = {config.video_token_id, config.image_token_id}
        embeds = self.model.get_input_embeddings()(torch.tensor(ids)).detach().clone()
        if features:
            embeds[torch.tensor([id_ in media for id_ in ids])] = torch.cat(features)
        places = [at for at, here in enumerate(stays) if here]
        return next_logprobs(self.model, embeds, positions_of(ids, grids, media), places, generated)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def test_every_shape(engine: Any, shown: list[Any], reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone, with what was kept of it, against transformers; then twice, and all in one batch, to the same end."""
    kept: list[list[int]] = []

    def spy(*args: Any) -> Any:
        selection = choose(*args)
        kept.append(selection.index.tolist())
        return selection

    choose = plugin.choose
    monkeypatch.setattr(plugin, "choose", spy)
    asked = requests(shown)
    alone = {}
    for name, request in asked.items():
        kept.clear()
        engine.llm_engine.reset_mm_cache()
        engine.llm_engine.engine_core.reset_encoder_cache()
        engine.reset_prefix_cache()
        alone[name] = answers(engine, [request], TOKENS)[0]
        videos = request.get("multi_modal_data", {}).get("video", [])
        if name == "one video twice":  # what is cached is not chosen again
            kept *= 2 // len(kept)
        assert len(kept) == len(videos), name
        given = list(alone[name].outputs[0].token_ids)
        expected = reference.logprobs(request, [*kept], given)
        assert largest_difference(alone[name], expected) < 1e-3, name
        assert expected.argmax(-1).tolist() == given, name
    for _ in range(2):
        together = dict(zip(asked, answers(engine, list(asked.values()), TOKENS), strict=True))
        for name, output in together.items():
            assert list(output.outputs[0].token_ids) == list(alone[name].outputs[0].token_ids), name
            rows = zip(output.outputs[0].logprobs, alone[name].outputs[0].logprobs, strict=True)
            for now, before in rows:
                both = now.keys() & before.keys()
                assert all(abs(now[token].logprob - before[token].logprob) < 1e-3 for token in both), name


def test_faults_are_the_request_s_own(engine: Any, shown: list[Any]) -> None:
    video, text = shown[0].pictures, shown[0].questions[0].text
    with pytest.raises(OptionError, match="'keep' is 2"):
        answers(engine, [ask(text, video, keep=2)])
    with pytest.raises(OptionError, match="question_blind"):
        answers(engine, [ask(text, video, question_blind="yes")])
    with pytest.raises(PromptError, match="right behind another"):
        answers(engine, [ask(text, video, video, prompt=turn("<|video_pad|><|video_pad|>" + text))])
    assert answers(engine, [ask(text, video)])[0].outputs[0].token_ids


def test_the_encoder_runs_once_for_a_video(engine: Any, shown: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    held = engine.llm_engine.model_executor.driver_worker.worker.model_runner.model
    runs: list[int] = []
    encode = type(held)._process_video_input
    monkeypatch.setattr(type(held), "_process_video_input", lambda *args: runs.append(1) or encode(*args))
    held._features = plugin.FeatureCache()
    video = shown[2].pictures[:40]
    for question in shown[2].questions:
        answers(engine, [ask(question.text, video)], 1)
    assert len(runs) == 1
