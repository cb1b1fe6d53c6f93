"""A question in front of its video, and several turns in one prompt: through the public interface, for every family."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from eager_reference import cut_logits
from models import VIDEO, build, left_padded, prompt

import segmo
from segmo.runtime.layout import TURN
from segmo.sceneqa.model import build_prompts, load_model
from segmo.sceneqa.task import DIFFICULTIES, make_sample

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

OPTIONS: dict[str, Any] = {"keep": 0.5, "segments": "scene"}


def with_text(inputs: dict[str, torch.Tensor], at: int, words: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs with words set in at a place of the prompt."""
    found = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            rows = inputs[name]
            value = words if name == "input_ids" else torch.full_like(words, int(name == "attention_mask"))
            found[name] = torch.cat([rows[:, :at], value.expand(len(rows), -1), rows[:, at:]], 1)
    return found


def last_of_first_video(ids: torch.Tensor, cells: int) -> int:
    """Place behind the last token of a video of so many tokens."""
    return int((ids[0] == VIDEO).nonzero()[cells - 1]) + 1


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_turns_and_orders_equal_the_contract(family: str) -> None:
    """One compiled model: text between two videos sees and is seen by all; a question in front is found."""
    model = build(family)
    segmo.compile(model, **OPTIONS)
    counts = (3, 3) if family == "llava_onevision" else (4, 2)  # its pixels are one tensor for all videos
    videos = prompt(family, frames=counts)
    if family == "llava_onevision":
        videos["pixel_values_videos"] = videos["pixel_values_videos"].unflatten(1, (2, 3))[0]
    cells = (videos["input_ids"] == VIDEO).sum() * counts[0] // sum(counts)
    words = torch.arange(40, 60)[None]
    at = last_of_first_video(videos["input_ids"], int(cells))
    inputs = with_text(videos, at, words)
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    report = segmo.last_report()
    prefill: Any = report.prefill
    between = prefill.frame[0] == TURN
    assert bool(between[at : at + 20].all())
    assert not bool(between[inputs["input_ids"][0] == VIDEO].any())
    torch.testing.assert_close(out.logits[0], cut_logits(model, inputs, prefill), rtol=1e-4, atol=1e-4)

    video = prompt(family, frames=6, question=0)
    scores = []
    for seed in (0, 1):
        asked = torch.randint(10, 90, (1, 9), generator=torch.Generator().manual_seed(seed))
        model.generate(**with_text(video, 0, asked), max_new_tokens=1, do_sample=False)
        report = segmo.last_report()
        question = report.to_dict()["question"]
        assert question["positions"][:9] == list(range(9))
        assert question["ids"][:9] == asked[0].tolist()
        scores.append(report.prefill.relevance)  # type: ignore[union-attr]
        assert f"question: {len(question['positions'])} tokens at 0 to" in str(report)
    assert not torch.equal(scores[0], scores[1])


def test_padding_is_no_question_and_each_row_has_its_own() -> None:
    model, batch = build("qwen2_vl"), left_padded(prompt("qwen2_vl", frames=6, batch=2), pads=4)
    segmo.compile(model, **OPTIONS)
    model.generate(**batch, max_new_tokens=1, do_sample=False)
    asked = segmo.last_report().prefill.question  # type: ignore[union-attr]
    text = (batch["input_ids"] >= 10) & batch["attention_mask"].bool()
    assert torch.equal(asked, text)


def test_embeddings_without_ids_have_the_text_behind_as_their_question() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=6)
    segmo.compile(model, **OPTIONS)
    ids = inputs["input_ids"]
    positions = model.model.get_rope_index(ids, inputs["mm_token_type_ids"], None, inputs["video_grid_thw"])[0]
    features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
    with torch.no_grad():
        model(
            inputs_embeds=model.get_input_embeddings()(ids),
            position_ids=positions,
            mm_encoder_outputs={"video": features},
        )
    question = segmo.last_report().to_dict()["question"]
    last = int((ids[0] == VIDEO).nonzero()[-1])
    assert question["positions"] == list(range(last + 1, ids.shape[1]))
    assert question["ids"] is None
    assert "no token ids" in question["source"]


@pytest.fixture(scope="module")
def trained() -> Any:
    model, processor = load_model()
    return model, processor, make_sample("validation", DIFFICULTIES["standard"], 0, {"retrieve": 3, "cross-scene": 2})


@pytest.mark.parametrize("scorer", ["embedding", "attention"])
def test_the_order_of_a_turn_does_not_hide_its_question(trained: Any, scorer: str) -> None:
    model, processor, sample = trained
    segmo.compile(model, keep=0.125, scorer=scorer)
    found: dict[bool, list[Any]] = {}
    for text_first in (False, True):
        prompts = build_prompts(model, processor, sample.pictures, sample.questions, text_first=text_first)
        found[text_first] = []
        for number, question in enumerate(sample.questions):
            with torch.no_grad():
                model(**prompts.only(number).inputs())
            report = segmo.last_report()
            assert report.to_dict()["question"]["text"] == question.text
            assert repr(question.text) in str(report)
            video = report.prefill.cell[0, report.prefill.kept()] >= 0  # type: ignore[union-attr]
            kept = report.prefill.kept()[video]  # type: ignore[union-attr]
            found[text_first].append((report.prefill.relevance, tuple(kept.tolist())))  # type: ignore[union-attr]
    segmo.uncompile(model)
    for rows in found.values():
        for (one, _), (other, _) in itertools.combinations(rows, 2):
            assert not torch.allclose(one, other), "every question has its own relevance"
        # Where relevance differs little, the last bits of a processor's products may make two selections the same.
        assert len({kept for _, kept in rows}) > len(sample.questions) // 2
    if scorer == "embedding":
        for (behind, _), (before, _) in zip(found[False], found[True], strict=True):
            torch.testing.assert_close(behind, before)
