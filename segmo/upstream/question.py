"""The question in a chat prompt, without the template around it and without the video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from segmo.errors import PromptError

ROLES = frozenset({"system", "user", "assistant"})


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

    It is the first text behind the last video token, up to the end of that turn; where nothing stands there, the text
    in front of the first video token in the same turn.

    Args:
        ids: token ids of one prompt.
        tokenizer: a transformers tokenizer.
        video_token: id of the video placeholder.

    Raises:
        PromptError: the prompt holds no video.
    """
    places = [place for place, token in enumerate(ids) if token == video_token]
    if not places:
        raise PromptError(f"the prompt holds no video token (id {video_token}), so its question cannot be told apart")
    special = _special_ids(tokenizer)
    behind = _texts(ids[places[-1] + 1 :], tokenizer, special)
    before = _texts(ids[: places[0]], tokenizer, special)
    first = next((text for text in behind if text), "")
    if first and first not in ROLES:
        return first
    last = next((text for text in reversed(list(before)) if text), "")
    role, line, rest = last.partition("\n")
    text = rest if line and role.strip() in ROLES else last
    return "" if text.strip() in ROLES else text.strip()


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _texts(ids: Sequence[int], tokenizer: Any, special: frozenset[int]) -> Iterator[str]:
    """The text between special tokens, piece by piece."""
    piece: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in special:
            piece.append(token)
        elif piece:
            yield str(tokenizer.decode(piece)).strip()
            piece = []
