"""What a model's chat template writes around the text of a turn, as token ids.

The template is not read but tried: it is rendered for small chats, and what they have in common is the template's. The
tokenizer is the one beside the model (its ``name_or_path``, a folder or what the hub's cache holds); nothing is
downloaded. Without one, the special ids of the model's configs are known: the end of a turn is where generation stops.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from segmo.runtime.question import ChatTokens, Ids

# Texts without a token in common, so that what two chats have in common is the template's.
WORDS = ("one", "9 + 9", "Zebra")
FAULTS = (TemplateError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
HIGH = 0.9  # special ids at the end of a vocabulary, from this part of it on, stand together


@dataclass(frozen=True)
class Chat:
    """What is known of a model's chats.

    Attributes:
        tokens: as ids.
        source: where that is from, in words.
        tokenizer: the model's tokenizer, None if there is none beside it.
    """

    tokens: ChatTokens
    source: str
    tokenizer: Any = None

    def decode(self, ids: Sequence[int]) -> str | None:
        """The text of some tokens, None without a tokenizer."""
        return None if self.tokenizer is None else str(self.tokenizer.decode(list(ids))).strip()


def chat_of(model: Any) -> Chat:
    """What is known of the chats of a transformers model."""
    config = getattr(model, "config", None)
    path = getattr(model, "name_or_path", None) or getattr(config, "name_or_path", None) or ""
    special = _config_ids(config) | _config_ids(getattr(model, "generation_config", None))
    found = _beside(str(path)) if path else None
    if found is not None:
        tokens = found.tokens
        return Chat(
            ChatTokens(tokens.special | special, tokens.blank, tokens.header, tokens.ends),
            found.source,
            found.tokenizer,
        )
    if not special:
        return Chat(ChatTokens(), "no template is known, so all text")
    stops = _stops(getattr(model, "generation_config", None)) or _stops(config)
    high = _high(special, getattr(config, "get_text_config", lambda: config)())
    return Chat(
        ChatTokens(special | high, frozenset(), (), tuple((stop,) for stop in stops)), "special ids of the config"
    )


def chat_of_tokenizer(tokenizer: Any, template: str | None = None, source: str = "the tokenizer") -> Chat:
    """What is known of the chats of a tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        template: its processor's chat template; the tokenizer's own when not given.
        source: where they are from, in words.
    """
    special = special_ids(tokenizer, template or "")
    stop = getattr(tokenizer, "eos_token_id", None)
    ends: tuple[Ids, ...] = () if stop is None else ((stop,),)
    tokens = ChatTokens(special, ends=ends)
    template = template or getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        try:
            tokens = _tried(tokenizer, template, special) or tokens
        except FAULTS as error:  # a template is a program of its own, and may refuse any chat
            source += f", whose chat template cannot be tried ({type(error).__name__}: {error})"
    return Chat(tokens, source, tokenizer)


def special_ids(tokenizer: Any, template: str = "") -> frozenset[int]:
    """Control tokens of a tokenizer: those marked as special, and added ones that the chat template writes."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {id_ for id_, token in added.items() if token.special or str(token) in template}
    return frozenset(found | set(tokenizer.all_special_ids))


@lru_cache(maxsize=16)
def _beside(path: str) -> Chat | None:
    """The chats of the tokenizer that lies beside a model, None if there is none that transformers can read."""
    from transformers import AutoProcessor, AutoTokenizer

    loaders: list[Any] = [AutoProcessor.from_pretrained, AutoTokenizer.from_pretrained]
    for load in loaders:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = load(path, local_files_only=True)
        except (OSError, ImportError, *FAULTS):  # no such files, or of a kind that needs another package
            continue
        tokenizer = getattr(found, "tokenizer", found)
        if hasattr(tokenizer, "all_special_ids"):
            return chat_of_tokenizer(tokenizer, getattr(found, "chat_template", None), f"chat template of {path}")
    return None


def _tried(tokenizer: Any, template: str, special: frozenset[int]) -> ChatTokens | None:
    """The template's header and end of a user turn, from what chats with different texts have in common."""

    def ids(*texts: str, reply: bool = True) -> list[int]:
        text = _rendered(tokenizer, template, texts, reply)
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    one, nine, zebra = WORDS
    alone = [ids(word) for word in WORDS]
    later = [ids(zebra, one, word) for word in WORDS[:2]]
    answer = _common([ids(zebra, word, nine) for word in (one, zebra)])
    head, tail = _common(alone), _common([row[::-1] for row in alone])[::-1]
    header = _header(_common(later), head, answer, special)
    if not header:
        return None
    blank = {id_ for id_ in (*header, *tail) if not str(tokenizer.decode([id_])).strip() and id_ not in special}
    while len(header) > 1 and header[-1] in blank:
        header = header[:-1]
    stop = next((at + 1 for at, id_ in enumerate(tail) if id_ in special), len(tail))
    closed = _common([ids(word, reply=False)[::-1] for word in WORDS])[::-1]
    ends = {tuple(tail[:stop]), tuple(closed[:1]) if closed[:1] and closed[0] in special else ()} - {()}
    return ChatTokens(special, frozenset(blank), tuple(header), tuple(sorted(ends)))


def _rendered(tokenizer: Any, template: str, texts: Sequence[str], reply: bool) -> str:
    """A chat of turns with these texts, those of the user first."""
    turns = [(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]
    for content in ("parts", "text"):  # some templates take one, some the other, most both
        chat = [
            {"role": role, "content": [{"type": "text", "text": text}] if content == "parts" else text}
            for role, text in turns
        ]
        try:
            found = str(
                tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=reply)
            )
        except FAULTS:
            if content == "text":
                raise
            continue
        if all(text in found for text in texts) and "'type'" not in found:
            return found
    raise ValueError("it does not write what a turn says")


def _header(later: list[int], head: list[int], answer: list[int], special: frozenset[int]) -> list[int]:
    """What stands in front of the user's text, in a first turn as in a later one, and not in front of an answer.

    The shortest such piece that begins with a control token; all that both turns have in common where no control token
    is in it.
    """
    both = _common([later[::-1], head[::-1]])[::-1]
    starts: Iterator[int] = (at for at in reversed(range(len(both))) if both[at] in special)
    for start in starts:
        found = both[start:]
        if answer[-len(found) :] != found:
            return found
    return both if not any(id_ in special for id_ in both) or both == head else []


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest common start."""
    found: list[int] = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return found


def _config_ids(config: Any) -> frozenset[int]:
    """All ids of tokens that a config names: ``eos_token_id``, ``image_token_index``, ... and those of its parts."""
    if config is None:
        return frozenset()
    named = config if isinstance(config, dict) else config.to_dict()
    found: set[int] = set()
    for name, value in named.items():
        if isinstance(value, dict):
            found |= _config_ids(value)
        elif str(name).endswith(("_token_id", "_token_ids", "_token_index")):
            values = value if isinstance(value, (list, tuple)) else [value]
            found |= {id_ for id_ in values if isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0}
    return frozenset(found)


def _stops(config: Any) -> list[int]:
    """The ids at which generation stops."""
    stop = getattr(config, "eos_token_id", None)
    return [id_ for id_ in (stop if isinstance(stop, (list, tuple)) else [stop]) if isinstance(id_, int)]


def _high(special: frozenset[int], config: Any) -> frozenset[int]:
    """Ids that stand among special ones at the end of a vocabulary."""
    size = getattr(config, "vocab_size", 0) or 0
    high = [id_ for id_ in special if HIGH * size <= id_ < size]
    return frozenset(range(min(high), size)) if len(high) > 1 else frozenset()
