"""The shipped model, its prompts, and the ways of running it that must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked_first import ASKED_FIRST, FRONT, answer_asked_first
from batches import encode_question
from cohesion import local_cohesion
from decoder import run_decoder
from forward import SHARED_VIDEO, SINKS, USUAL, Grid, answer_questions, encode_frames, patchify
from numpy.typing import NDArray
from shared import answer_full_shared, answer_shared
from thinning import thin_out

import segmo
from segmo.errors import SegMoError
from segmo.sceneqa.methods import answer_full
from segmo.sceneqa.model import MODEL_PATH, Prompts, build_prompts, load_model
from segmo.sceneqa.task import Difficulty, Sample, make_sample

SMALL = Difficulty(4, 12)
BUSY = Difficulty(3, 6, (4, 6))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model()


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample("validation", SMALL, 0, 2)


@pytest.fixture(scope="module")
def prompts(loaded: tuple[Any, Any], sample: Sample) -> Prompts:
    return build_prompts(*loaded, sample.pictures, sample.questions)


def _processed(processor: Any, pictures: NDArray[np.uint8], question: str) -> Any:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    return processor(text=[text], videos=[pictures], return_tensors="pt")


def test_weights_are_small_enough_for_the_repository() -> None:
    assert sum(path.stat().st_size for path in MODEL_PATH.parent.rglob("*") if path.is_file()) < 20e6


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(SegMoError, match="no trained model"):
        load_model(tmp_path)


def test_prompts_are_what_the_processor_makes(loaded: tuple[Any, Any], sample: Sample, prompts: Prompts) -> None:
    model, processor = loaded
    for row, question in enumerate(sample.questions):
        inputs = _processed(processor, sample.pictures, question.text)
        assert prompts.input_ids[row].equal(inputs["input_ids"][0])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
            ours = answer_full(model, prompts.only(row)).logits[0]
        torch.testing.assert_close(ours, logits)
        assert processor.tokenizer.decode([int(prompts.answer[row])]) == question.answer


def test_batched_questions_answer_as_single_ones(loaded: tuple[Any, Any], prompts: Prompts) -> None:
    together = answer_full(loaded[0], prompts).logits
    torch.testing.assert_close(together[2:3], answer_full(loaded[0], prompts.only(2)).logits)


def test_generate_answers_with_one_word_and_stops(loaded: tuple[Any, Any], sample: Sample) -> None:
    model, processor = loaded
    inputs = _processed(processor, sample.pictures, sample.questions[0].text)
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert ids.tolist()[1:] == [processor.tokenizer.eos_token_id]


def test_training_forward_equals_single_prompts(loaded: tuple[Any, Any], sample: Sample, prompts: Prompts) -> None:
    """Many questions in one sequence are the same as each of them alone."""
    model, processor = loaded
    frames = encode_frames(model, patchify(sample.pictures)).detach()
    torch.testing.assert_close(frames.flatten(0, 1), prompts.features)
    ids = torch.tensor([[encode_question(processor.tokenizer, question) for question in sample.questions]])
    model.set_attn_implementation({"text_config": SHARED_VIDEO})
    try:
        every = torch.arange(len(prompts.features))[None]
        with torch.no_grad():
            logits = answer_questions(model, prompts.features[None], 12, every, prompts.input_ids[0, :2], ids).logits
    finally:
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits[0, :, 0], answer_full(model, prompts).logits, atol=1e-4, rtol=1e-4)


def test_shared_answers_equal_single_prompts(loaded: tuple[Any, Any], prompts: Prompts) -> None:
    """Also on a part of the tokens, where every token keeps its place."""
    model = loaded[0]
    full, shared = answer_full(model, prompts), answer_full_shared(model, prompts)
    torch.testing.assert_close(shared.logits, full.logits, atol=1e-4, rtol=1e-4)
    assert (shared.kept, shared.flops) == (full.kept, full.flops)
    kept = torch.arange(0, len(prompts.features), 3)
    count = len(prompts.input_ids)
    by_hand = run_decoder(model, prompts, kept.expand(count, -1), prompts.features[kept].expand(count, -1, -1))
    shared = answer_shared(model, prompts, kept, prompts.features[kept])
    torch.testing.assert_close(shared.logits, by_hand, atol=1e-4, rtol=1e-4)
    assert model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("first", [False, True])
def test_busy_videos_are_answered_as_single_prompts_are(loaded: tuple[Any, Any], first: bool) -> None:
    """Many tokens a frame, and the question on either side of the video: what training and benchmark compute."""
    model, processor = loaded
    sample = make_sample("validation", BUSY, int(first), 1)
    prompts = build_prompts(model, processor, sample.pictures, sample.questions, text_first=first)
    expected = answer_full(model, prompts).logits
    torch.testing.assert_close(answer_full_shared(model, prompts).logits, expected, atol=1e-4, rtol=1e-4)
    if not first:
        return
    count, video = len(prompts.input_ids), len(prompts.features)
    ids = torch.tensor([encode_question(processor.tokenizer, question) for question in sample.questions])
    sinks = prompts.input_ids[0, [0, FRONT - 1]]
    model.set_attn_implementation({"text_config": ASKED_FIRST})
    try:
        every = torch.arange(video).expand(count, -1)
        features = prompts.features.expand(count, -1, -1)
        with torch.no_grad():
            logits, looks = answer_asked_first(model, features, BUSY.frames, every, sinks, ids, (1,), Grid(*BUSY.busy))
    finally:
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits[:, 0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(looks[1].sum(-1), torch.ones(count, 1))


@pytest.mark.slow
def test_thinned_videos_are_what_the_compiled_model_keeps(loaded: tuple[Any, Any], prompts: Prompts) -> None:
    """Training meets videos as the selection leaves them: the same tokens, question by question."""
    model, kept = loaded[0], len(prompts.features) // 4
    words = model.get_input_embeddings()(prompts.input_ids[:, -6:-1]).detach()
    ours = thin_out(prompts.features, USUAL.cells, kept, words)
    segmo.compile(model, keep=0.25)
    try:
        with torch.no_grad():
            model(**prompts.inputs())
        report = segmo.last_report().prefill
        assert report is not None
        assert report.index is not None
        place = report.index - SINKS
    finally:
        segmo.uncompile(model)
    video = (place >= 0) & (place < len(prompts.features))
    assert ours.tolist() == [row[inside].tolist() for row, inside in zip(place, video, strict=True)]


def test_decoder_by_hand_equals_the_model(loaded: tuple[Any, Any], prompts: Prompts) -> None:
    count, video = len(prompts.input_ids), len(prompts.features)
    logits = run_decoder(
        loaded[0],
        prompts,
        torch.arange(video).expand(count, -1),
        prompts.features.expand(count, -1, -1),
        1,
        lambda attention_QV: torch.arange(attention_QV.shape[1]).expand(count, -1),
    )
    torch.testing.assert_close(logits, answer_full(loaded[0], prompts).logits, atol=1e-4, rtol=1e-4)


def test_cohesion_is_a_share_and_above_nothing(loaded: tuple[Any, Any], sample: Sample, prompts: Prompts) -> None:
    share, even = local_cohesion(loaded[0], prompts, sample.scene_F)
    config = loaded[0].config.text_config
    assert share.shape == (config.num_hidden_layers, config.num_attention_heads)
    assert ((share > 0) & (share <= 1)).all()
    assert 0 < even < 1
