"""The question in a chat prompt, without the template around it and without the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segmo.compiler.chat import chat_of_tokenizer
from segmo.errors import PromptError
from segmo.runtime.question import find_question


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """All text of the last user turn of a chat, in order; "" if it has none.

    Args:
        messages: turns as for a processor's ``apply_chat_template``: ``{"role": ..., "content": text or parts}``.

    Raises:
        PromptError: there is no user turn.
    """
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content.strip()
            texts = [str(part["text"]).strip() for part in content if part.get("type", "text") == "text"]
            return " ".join(text for text in texts if text)
    raise PromptError("the chat has no turn of the user, so there is no question")


def question_in_prompt(ids: Sequence[int], tokenizer: Any, video_token: int) -> str:
    """The question of a prompt that a chat template has been applied to; "" if there is none.

    It is the text of the last user turn, before or behind its videos, as :mod:`segmo.runtime.question` tells it.

    Args:
        ids: token ids of one prompt.
        tokenizer: a transformers tokenizer.
        video_token: id of the video placeholder.

    Raises:
        PromptError: the prompt holds no video.
    """
    row = list(ids)
    if video_token not in row:
        raise PromptError(f"the prompt holds no video token (id {video_token}), so its question cannot be told apart")
    chat = chat_of_tokenizer(tokenizer)
    places = find_question(row, [token != video_token for token in row], chat.tokens, default=False)
    return chat.decode([row[place] for place in places]) or ""
