"""``segmo.Memory``: a video that was watched once, and is asked as often as one likes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from segmo.calls.length import Need, position_limit
from segmo.compat.dynamo import is_compiled
from segmo.errors import CacheError, PromptError
from segmo.memory.arguments import arguments
from segmo.memory.cache import MemoryCache, expect_memories
from segmo.memory.conversation import Conversation, Turn, level
from segmo.memory.counts import Glance, counts, glances
from segmo.memory.intake import Intake, Video, are_several
from segmo.memory.known import known_family, video_token, watching_model
from segmo.memory.look import Survey, look, survey
from segmo.memory.moves import LateLayer, Moves, late_layers
from segmo.memory.options import PLACES, MemoryOptions, QuestionOptions
from segmo.memory.prompt import Message, Script
from segmo.memory.rows import decoder_of
from segmo.memory.saving import read_memory, write_memory
from segmo.memory.seen import Seen
from segmo.memory.stale import versions
from segmo.memory.store import as_folder
from segmo.memory.undo import all_or_nothing
from segmo.memory.watcher import Watcher
from segmo.runtime.host import made_here

Question = str | Sequence[int] | Tensor


class Memory:
    """A video's keys and values, and a conversation about it. Made by :func:`watch` and :meth:`load`.

    Questions may come from other threads while the video goes on: each sees what was watched before it came.

    Attributes:
        model, processor: of transformers; the processor may be None where prompts come as ids.
        options: how it was watched.
        looked: scenes that the last question of :meth:`ask` saw something of, in order; of the first one in a batch.
    """

    def __init__(self, model: Any, processor: Any, options: MemoryOptions, fps: float) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.family = known_family(model, processor)
        self.fps = float(fps)
        self.script = None if processor is None else Script(processor, video_token(model), self.fps)
        self.intake = Intake(model, self.family, self.script, self.fps)
        self._watcher: Watcher | None = None
        self.lock = threading.RLock()
        self.talk = Conversation()
        self._weights = versions(model)
        self._surveyed: Survey | None = None
        self.looked: tuple[Glance, ...] = ()
        self._said_too_long = False
        self.identity: dict[str, Any] | None = None
        self.processor_in: Path | None = None  # the folder that holds it, once there is one

    # watching

    @made_here()
    def extend(self, video: Video, *, skipped: int = 0) -> None:
        """Watches what comes next in the video. Broken off, the memory is as it was before.

        Args:
            video: as for :func:`watch`: frames, a file, or a processor's outputs (where a family has no text between
                frames). Frames that Qwen merges in pairs should come in pairs; an odd last one is shown twice.
            skipped: frames that came before these and were not watched: what is shown now is shown so much later.

        Raises:
            OptionError: ``skipped`` is no count.
            PromptError: it does not go on from what was watched.
        """
        with self.lock, all_or_nothing(self, *self._changing()):
            self._check_weights()
            part = self.intake.part(video, skipped, self._watcher)
            if self._watcher is None:
                self._watcher = Watcher(self.model, self.family, self.options, part.intervals)
                self._watcher.begin(part.sinks)
            self._watcher.keeper.alike((part.ids.tolist(), part.seconds), "video")
            self._watcher.add(part)
            self._warn_if_too_long()
            self.talk.moved()
            self._surveyed = None
            if self.options.folder is not None:
                write_memory(self, self.options.folder)

    def _changing(self) -> list[Any]:
        """What watching changes, beside the memory itself."""
        watcher = self._watcher
        watching = [] if watcher is None else [watcher, watcher.keeper, watcher.positions, watcher.detector]
        return [self.talk, *watching, *([] if self.script is None else [self.script])]

    def _warn_if_too_long(self) -> None:
        """Says once that the video has taken more positions than the model was trained for."""
        limit, needed = position_limit(self.model.config), int(self.watcher.positions.next)
        if limit is not None and needed > limit and not self._said_too_long:
            self._said_too_long = True
            warnings.warn(str(Need(needed, limit, what="this memory")), stacklevel=3)

    def _check_weights(self) -> None:
        """Refuses to go on with weights that were written since the video was watched.

        Raises:
            CacheError: they were.
        """
        if self._weights != versions(self.model):
            raise CacheError("the model's weights have changed since this video was watched; watch it again")

    @property
    def watcher(self) -> Watcher:
        """What has been watched."""
        assert self._watcher is not None
        return self._watcher

    # asking

    @made_here()
    def ask(
        self,
        question: Question | Sequence[str],
        *,
        keep: float | None = None,
        balance: float | None = None,
        scorer: str | None = None,
        **generation: Any,
    ) -> Any:
        """The answer to a question about the video, which goes on the conversation so far.

        Args:
            question: text; a list of texts is answered in one batch, each behind the conversation, which then stays
                as it is. Without a processor: ids of all that stands behind the video.
            keep: fraction of the video's tokens that it sees; that of the options when None.
            balance, scorer: likewise.
            **generation: as for the model's ``generate``; greedy and at most 64 new tokens unless it says otherwise.

        Returns:
            The text; a list where several answers were asked for; ids, (new tokens,), without a processor.

        Raises:
            OptionError: ``keep``, ``balance`` or ``scorer`` is out of range, or ``generate`` refuses an argument.
            PromptError: the question is empty, or holds the model's video or image token.
        """
        options = self.options.question(keep=keep, balance=balance, scorer=scorer)
        several = are_several(question)
        with self.lock:
            talk = self.talk
            asked, seen, inputs = self._asked(talk, question, options)
            self.looked = glances(self.watcher, self._survey().starts, seen[0])
            length = self.watcher.length
        return talk.answer(self, asked, seen, inputs, generation, several, length)

    @made_here()
    def inputs(
        self,
        question: Question | Sequence[Question],
        keep: float | None = None,
        balance: float | None = None,
        scorer: str | None = None,
    ) -> dict[str, Any]:
        """Arguments of the model's ``generate`` for a question behind the video, or for several in one batch.

        They stand without the conversation. What comes before the question in ``input_ids`` are the tokens that it
        sees, as many as the cache holds.
        """
        options = self.options.question(keep=keep, balance=balance, scorer=scorer)
        with self.lock:
            return self._asked(Conversation(), question, options)[2]

    def _asked(
        self, talk: Conversation, question: Any, options: QuestionOptions
    ) -> tuple[list[Turn], list[Seen], dict[str, Any]]:
        """Questions behind a conversation, what each sees, and arguments of ``generate``."""
        self._check_weights()
        questions = list(question) if are_several(question) else [question]
        told = [each.tolist() if isinstance(each, Tensor) else each for each in questions]
        self.watcher.keeper.alike((told, options), "question")
        asked = level([talk.follow(self, each) for each in questions])
        seen = [look(self.model, self._survey(), turn, options) for turn in asked]
        layers = self._late(seen, asked[0].said)
        return asked, seen, arguments(self.model, self.watcher, asked, seen, layers)

    @made_here()
    def cache(
        self,
        question: Question,
        keep: float | None = None,
        balance: float | None = None,
        scorer: str | None = None,
    ) -> MemoryCache:
        """What a question sees, as a cache for ``model.generate(**inputs, past_key_values=memory.cache(question))``.

        The inputs are those of the whole prompt, of which only the text behind the video is computed; without
        ``pixel_values_videos`` the vision encoder does not run again. One prompt at a time.

        Raises:
            CacheError: the model's weights have changed.
            PromptError: it is not one question.
        """
        if are_several(question):
            raise PromptError("a cache is for one question; ask several with memory.ask, or make a cache for each")
        options = self.options.question(keep=keep, balance=balance, scorer=scorer)
        with self.lock:
            self._check_weights()
            expect_memories(self.model)
            seen = look(self.model, self._survey(), Conversation().follow(self, question), options)
            layers = self._late([seen], None)
            return MemoryCache(layers, seen.at, self.watcher, video_token(self.model))

    # where it lives

    @made_here()
    def save(self, path: Path | str) -> None:
        """Writes the memory into a folder, in place of one that is there; broken off, the old one is still whole.

        Raises:
            CacheError: the folder cannot be written, or the model's weights have changed.
        """
        with self.lock:
            self._check_weights()
            write_memory(self, as_folder(path))

    @classmethod
    @made_here()
    def load(cls, model: Any, path: Path | str, processor: Any = None, **options: Any) -> Memory:
        """Reads a memory that :meth:`save` wrote, or that was watched with ``place="disk"``.

        Args:
            model: the one that it was made with.
            path: the folder.
            processor: of the model; the one that was saved with the memory when None.
            **options: ``place``, ``folder``, ``limit``, ``keep``, ``scorer`` and ``balance`` may be others than when
                the video was watched.

        Raises:
            CacheError: there is no memory, or it is stale: other weights, dtype, config, family, options, version of
                SegMo, or a version of transformers that lays prompts out otherwise.
        """
        memory: Memory = read_memory(cls, watching_model(model), as_folder(path), processor, options)
        return memory

    def forget(self) -> None:
        """Begins a new conversation; the video stays."""
        with self.lock:
            self.talk = Conversation()

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation so far, as for a processor's chat template."""
        return tuple(self.talk.turns)

    def _survey(self) -> Survey:
        """What all questions have in common; found once until the video goes on."""
        if self._surveyed is None:
            self._surveyed = survey(self.watcher)
        return self._surveyed

    def moves(self, seen: Sequence[Seen], said: tuple[Tensor, Tensor] | None) -> Moves:
        """What questions see, on its way to the model."""
        layers = decoder_of(self.model).config.num_hidden_layers
        return Moves(seen, said, self.model.device, self.watcher.keeper.ranks, layers)

    def _late(self, seen: Sequence[Seen], said: tuple[Tensor, Tensor] | None) -> list[LateLayer]:
        """Layers of a cache with what questions see. A compiled model takes it whole: its graphs fetch nothing."""
        layers = late_layers(self.moves(seen, said), self.watcher.sinks.features)
        if is_compiled(self.model):
            for layer in layers:
                layer.keys  # noqa: B018  # fetched
        return layers

    # what there is

    def summary(self) -> dict[str, Any]:
        """Counts and bytes.

        Returns:
            ``frames`` (of the language model), ``seconds`` of video, ``segments``, ``scenes``, ``tokens`` of the prompt
            up to the end of the video, ``video_tokens`` among them, ``held_tokens`` and ``held_video_tokens`` that are
            remembered, ``bytes`` of keys, values and features (of this rank), ``bytes_per_second`` of video,
            ``place``, ``bits`` of a stored key or value, ``turns``.
        """
        with self.lock:
            return {
                **counts(self.watcher),
                "place": "+".join(self.options.places),
                "bits": self.options.bits or 8 * self.model.dtype.itemsize,
                "turns": len(self.talk.turns),
            }

    @property
    def bytes_in(self) -> dict[str, int]:
        """Bytes of keys, values and features in each place, "device", "host" and "disk".

        Budgets are those of segments that are over; the text in front and the segment that goes on are on the device.
        """
        with self.lock:
            held = self.watcher.held()
            return {name: sum(block.bytes for block in held if block.place == name) for name in PLACES}

    def __repr__(self) -> str:
        known = self.summary()
        return (
            f"Memory({known['seconds']:.1f} s of video, {known['held_video_tokens']:,} of {known['video_tokens']:,} "
            f"video tokens in {known['segments']} segments, {known['bytes'] / 1e6:.1f} MB on {known['place']})"
        )
