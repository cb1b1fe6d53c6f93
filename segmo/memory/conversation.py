"""Questions one after the other: what was said stands behind the video, and its keys stay as they were made.

Legend: Q tokens, L decoder layers, G key/value heads, D head size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from segmo.calls.call import without_video
from segmo.checked import check_utf8
from segmo.compat.cache_name import cache_of
from segmo.errors import OptionError, PromptError, SegMoError
from segmo.memory.intake import as_ids, check_text
from segmo.memory.moves import Moves
from segmo.memory.prompt import Message, Script, assistant, user
from segmo.memory.rows import run_rows
from segmo.memory.seen import Seen
from segmo.memory.watcher import Watcher

NEW_TOKENS = 64
# Arguments of ``generate`` for which a memory has its own, beside those that it hands over.
_OWN = ("inputs", "inputs_embeds", "past_key_values", "cache_implementation", "pixel_values", "pixel_values_videos")


class Watched(Protocol):
    """What a conversation needs of a memory."""

    model: Any
    script: Script | None
    lock: threading.RLock
    talk: Conversation

    @property
    def watcher(self) -> Watcher:
        """What has been watched."""

    def moves(self, seen: Sequence[Seen], said: tuple[Tensor, Tensor] | None) -> Moves:
        """What questions see, on its way to the model."""


@dataclass(frozen=True)
class Turn:
    """A question in its place.

    Attributes:
        question: as it was given.
        words: ids that choose what is seen.
        before: ids behind the video whose keys are known.
        said: these keys and values, (L, G, Q, D) each; None without any.
        ids: that come behind them, up to where the model answers.
    """

    question: Any
    words: Sequence[int]
    before: list[int]
    said: tuple[Tensor, Tensor] | None
    ids: list[int]


def level(turns: Sequence[Turn]) -> list[Turn]:
    """Turns behind the same tokens of the conversation, so that they can be answered in one batch."""
    same = min(len(turn.before) for turn in turns)
    return [
        replace(
            turn,
            before=turn.before[:same],
            said=None if not same or turn.said is None else (turn.said[0][:, :, :same], turn.said[1][:, :, :same]),
            ids=[*turn.before[same:], *turn.ids],
        )
        for turn in turns
    ]


@dataclass
class Conversation:
    """What was said about a video.

    Attributes:
        turns: questions and answers.
        ids: behind the video, whose keys are known.
        said: keys and values of these; None where they have to be made again.
    """

    turns: list[Message] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    said: tuple[Tensor, Tensor] | None = None

    def moved(self) -> None:
        """The video went on: what was said stands at another place now, and is read again there."""
        self.said = None

    def follow(self, memory: Watched, question: Any) -> Turn:
        """A question behind what was said.

        Raises:
            PromptError: it is empty, or holds more than text.
        """
        if isinstance(question, str):
            if not question.strip():
                raise PromptError("the question is empty; ask something about the video")
            check_utf8("the question", question)
            if memory.script is None:
                raise PromptError("a question in words needs a processor; hand in the ids behind the video")
            whole = memory.script.behind([*self._first(question), *([user(question)] if self.turns else [])])
            words: Sequence[int] = memory.script.words(question.strip())
            check_text(list(words), memory.model)
        else:
            words = as_ids(question, memory.model)
            whole = [*self.ids, *words]
        same = 0
        if self.said is not None:
            pairs = zip(self.ids, whole[:-1], strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.ids), len(whole) - 1))
            same = min(same, self.said[0].shape[2])
        said = None if not same or self.said is None else tuple(x[:, :, :same] for x in self.said)
        return Turn(question, words, whole[:same], said, whole[same:])  # type: ignore[arg-type]  # two of them

    def _first(self, question: str) -> list[Message]:
        """The turns so far, the video in the first one."""
        if not self.turns:
            return [user(question, video=True)]
        text = self.turns[0]["content"][-1]["text"]
        return [user(text, video=True), *self.turns[1:]]

    def answer(
        self,
        memory: Watched,
        asked: Sequence[Turn],
        seen: Sequence[Seen],
        inputs: dict[str, Any],
        generation: dict[str, Any],
        several: bool,
        length: int,
    ) -> Any:
        """Lets the model answer, and remembers what was said if that was one question with one answer.

        Args:
            memory, asked, seen, inputs: the questions, what they see, and arguments of ``generate``.
            generation: further ones.
            several: a list was asked.
            length: tokens up to the end of the video, when it was asked.

        Raises:
            OptionError: ``generate`` refuses an argument, or it is one that a memory hands over itself.
        """
        for name, value in generation.items():
            if name in _OWN or (name in inputs and value is not inputs[name]):
                raise OptionError(
                    f"a memory hands {name} to generate itself; leave it out, or use memory.cache(question)"
                )
        cache, start = cache_of(inputs), inputs["input_ids"].shape[1]
        defaults = {} if "generation_config" in generation else {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        if "max_length" in generation:
            defaults.pop("max_new_tokens", None)
        try:
            with torch.no_grad(), without_video():
                found = memory.model.generate(**(defaults | generation | inputs))
        except SegMoError:
            raise
        except ValueError as error:
            raise OptionError(f"generate refuses what it was given: {error}") from error
        ids = getattr(found, "sequences", found)[:, start:]
        texts = [self._text(memory, row) for row in ids]
        if several or len(ids) != 1:
            return texts
        with memory.lock:
            if memory.talk is self:
                self._remember(memory, asked[0], seen[0], ids[0].tolist(), texts[0], cache)
                if memory.watcher.length != length:
                    self.moved()
        return texts[0]

    def _text(self, memory: Watched, ids: Tensor) -> Any:
        if memory.script is None:
            return ids.cpu()
        return memory.script.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _remember(self, memory: Watched, turn: Turn, seen: Seen, new: list[int], text: Any, cache: Any) -> None:
        """Keys of a question and its answer, as they were made."""
        held = len(seen)
        ids = [*turn.before, *turn.ids, *new]
        layers = cache.layers
        if layers[0].keys.shape[0] == 1 and layers[0].keys.shape[2] == held + len(ids) - 1:
            keys, values = (torch.stack([getattr(x, name)[0, :, held:] for x in layers]) for name in ("keys", "values"))
        else:  # beams: whose keys these are is not known
            keys, values = self._again(memory, turn, seen, ids)
        self.said = (keys, values)
        self.ids = ids
        if isinstance(turn.question, str):
            self.turns += [user(turn.question), assistant(text)]
        else:
            self.turns += [user(""), assistant("")]

    def _again(self, memory: Watched, turn: Turn, seen: Seen, ids: list[int]) -> tuple[Tensor, Tensor]:
        """The rows of a turn once more, behind what they saw."""
        rows = torch.tensor(ids[len(turn.before) : -1])
        embed = memory.model.get_input_embeddings()
        embeds = embed(rows.to(embed.weight.device)).detach()
        first = memory.watcher.behind + len(turn.before)
        position = torch.arange(first, first + len(rows)).expand(memory.watcher.positions.rows, -1)
        moves = memory.moves([seen], turn.said)
        layers = [moves.take(layer) for layer in range(moves.layers)]
        past = (torch.cat([keys for keys, _ in layers]), torch.cat([values for _, values in layers]))
        keys, values = run_rows(memory.model, embeds, position, past, torch.zeros(len(rows), dtype=torch.bool))
        if turn.said is None:
            return keys, values
        return torch.cat([turn.said[0], keys], 2), torch.cat([turn.said[1], values], 2)
