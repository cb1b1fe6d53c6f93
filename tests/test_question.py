"""The question is found in messages and in rendered prompts of real chat templates."""

from __future__ import annotations

from typing import Any

import pytest

from segmo.demo.processor import VIDEO, build_processor
from segmo.errors import PromptError
from segmo.sceneqa.model import MODEL_PATH
from segmo.upstream.question import question_in_prompt, question_of

LONG = "What colour is the bus, and " + "where does the street lead, " * 40 + "after that?"


def _turn(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "video"} if part is None else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((None, "Who is it?"), "Who is it?"),
        (("Who is it?", None), "Who is it?"),
        ((None, LONG), LONG),
        ((None,), ""),
        ((None, "When does the assistant come?"), "When does the assistant come?"),
    ],
)
def test_the_question_of_a_chat_and_of_its_prompt(parts: tuple[Any, ...], expected: str) -> None:
    messages = _turn(*parts)
    assert question_of(messages) == expected
    processor: Any = build_processor()
    tokenizer = processor.tokenizer
    video = tokenizer.convert_tokens_to_ids(VIDEO)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = tokenizer(text.replace(VIDEO, VIDEO * 5))["input_ids"]
    assert question_in_prompt(ids, tokenizer, video) == expected


def test_the_trained_models_prompt_gives_its_question() -> None:
    from transformers import AutoProcessor

    load: Any = AutoProcessor.from_pretrained
    processor = load(MODEL_PATH)
    text = processor.apply_chat_template(_turn(None, "which digit in red grid"))
    ids = processor.tokenizer(text)["input_ids"]
    video = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
    assert question_in_prompt(ids, processor.tokenizer, video) == "which digit in red grid"


def test_the_last_turn_of_the_user_counts() -> None:
    chat = [*_turn(None, "First?"), {"role": "assistant", "content": "Yes."}, {"role": "user", "content": " Next? "}]
    assert question_of(chat) == "Next?"


def test_no_user_and_no_video_are_errors() -> None:
    with pytest.raises(PromptError, match="no turn of the user"):
        question_of([{"role": "system", "content": "x"}])
    with pytest.raises(PromptError, match="no video token"):
        question_in_prompt([1, 2, 3], None, 9)
