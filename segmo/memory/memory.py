"""``segmo.watch`` and ``segmo.Memory``: a video watched once, and asked as often as one likes.

Legend: B questions, P keys held for a question, Q tokens of it, L decoder layers, G key/value heads, D head size.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmo.compat.cache_name import cache_name
from segmo.compat.dynamo import is_compiled
from segmo.errors import CacheError, OptionError, PromptError
from segmo.memory.cache import MemoryCache, expect_memories
from segmo.memory.choose import find_starts
from segmo.memory.conversation import Conversation, Turn, level
from segmo.memory.known import known_family, text_inside, video_token
from segmo.memory.look import Survey, look, survey
from segmo.memory.moves import LateLayer, Moves, late_layers
from segmo.memory.options import PLACES, MemoryOptions, Place, QuestionOptions, parse
from segmo.memory.prompt import FPS, Message, Part, Script, from_outputs
from segmo.memory.rows import cache_of_layers, decoder_of
from segmo.memory.saving import read_memory, write_memory
from segmo.memory.seen import Seen
from segmo.memory.stale import versions
from segmo.memory.undo import all_or_nothing
from segmo.memory.watcher import Watcher

Video = str | Path | NDArray[np.uint8] | Tensor | Mapping[str, Any]
Question = str | Sequence[int] | Tensor


@dataclass(frozen=True)
class Glance:
    """A scene that an answer looked at.

    Attributes:
        start, end: seconds of the video.
        tokens: of the scene that the question saw.
    """

    start: float
    end: float
    tokens: int


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
        self.fps = fps
        self.script = None if processor is None else Script(processor, video_token(model), fps)
        self._watcher: Watcher | None = None
        self.lock = threading.RLock()
        self.talk = Conversation()
        self._weights = versions(model)
        self._surveyed: Survey | None = None
        self.looked: tuple[Glance, ...] = ()
        self.identity: dict[str, Any] | None = None

    # watching

    def extend(self, video: Video, *, skipped: int = 0) -> None:
        """Watches what comes next in the video. Broken off, the memory is as it was before.

        Args:
            video: as for :func:`watch`: frames, a file, or a processor's outputs (where a family has no text between
                frames). Frames that Qwen merges in pairs should come in pairs; an odd last one is shown twice.
            skipped: frames that came before these and were not watched: what is shown now is shown so much later.

        Raises:
            PromptError: it does not go on from what was watched.
        """
        with self.lock, all_or_nothing(self, *self._changing()):
            self._check_weights()
            part = self._part(video, skipped)
            if self._watcher is None:
                self._watcher = Watcher(self.model, self.family, self.options, part.intervals)
                self._watcher.begin(part.sinks)
            self._watcher.add(part)
            self.talk.moved()
            self._surveyed = None
            if self.options.folder is not None:
                write_memory(self, self.options.folder)

    def _changing(self) -> list[Any]:
        """What watching changes, beside the memory itself."""
        watcher = self._watcher
        watching = [] if watcher is None else [watcher, watcher.keeper, watcher.positions, watcher.detector]
        return [self.talk, *watching, *([] if self.script is None else [self.script])]

    def _check_weights(self) -> None:
        """Refuses to go on with weights that were written since the video was watched.

        Raises:
            CacheError: they were.
        """
        if self._weights != versions(self.model):
            raise CacheError("the model's weights have changed since this video was watched; watch it again")

    def _part(self, video: Video, skipped: int) -> Part:
        first = self._watcher is None
        if isinstance(video, Mapping):
            part = from_outputs(video, video_token(self.model), self.fps)
            if not first and text_inside(self.family):
                raise PromptError(
                    f"{self.family.model_type} writes text between frames, which a processor's outputs for a further "
                    "part do not hold; extend with frames"
                )
            if first and self.script is not None:
                self.script.learn(part)
            start = 0.0 if self._watcher is None else self._watcher.seconds[-1] + self._watcher.each
            start += skipped / self.fps
            return replace(part, seconds=tuple(start + at for at in part.seconds))
        if self.script is None:
            raise PromptError("frames need a processor; without one, hand in a processor's outputs")
        frames = self._frames(video)
        self.script.sampled += skipped
        return self.script.first(frames) if first else self.script.more(frames)

    def _frames(self, video: Any) -> NDArray[np.uint8]:
        if isinstance(video, (str, Path)):
            from segmo.video import read

            clip = read(video, self.fps)
            assert self.script is not None
            self.script.fps = clip.fps
            return clip.frames
        frames: NDArray[np.uint8] = video.cpu().numpy() if isinstance(video, Tensor) else np.asarray(video)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise PromptError(
                f"frames are {frames.dtype} of shape {frames.shape}; they must be uint8 (T, height, width, 3), T >= 1"
            )
        return frames

    @property
    def watcher(self) -> Watcher:
        """What has been watched."""
        assert self._watcher is not None
        return self._watcher

    # asking

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
            OptionError: ``keep``, ``balance`` or ``scorer`` is out of range.
            PromptError: the question is empty or holds the model's video token.
        """
        options = self.options.question(keep=keep, balance=balance, scorer=scorer)
        several = _are_several(question)
        with self.lock:
            talk = self.talk
            asked, seen, inputs = self._asked(talk, question, options)
            self.looked = self._glances(seen[0])
            length = self.watcher.length
        return talk.answer(self, asked, seen, inputs, generation, several, length)

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
        questions = list(question) if _are_several(question) else [question]
        asked = level([talk.follow(self, each) for each in questions])
        seen = [look(self.model, self._survey(), turn, options) for turn in asked]
        return asked, seen, self._inputs(asked, seen)

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
        """
        options = self.options.question(keep=keep, balance=balance, scorer=scorer)
        with self.lock:
            self._check_weights()
            expect_memories(self.model)
            seen = look(self.model, self._survey(), Conversation().follow(self, question), options)
            layers = self._late([seen], None)
            return MemoryCache(layers, seen.at, self.watcher, video_token(self.model))

    # where it lives

    def save(self, path: Path | str) -> None:
        """Writes the memory into a folder, in place of one that is there; broken off, the old one is still whole."""
        with self.lock:
            self._check_weights()
            write_memory(self, Path(path))

    @classmethod
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
        memory: Memory = read_memory(cls, model, Path(path), processor, options)
        return memory

    def forget(self) -> None:
        """Begins a new conversation; the video stays."""
        with self.lock:
            self.talk = Conversation()

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation so far, as for a processor's chat template."""
        return tuple(self.talk.turns)

    def _glances(self, seen: Seen) -> tuple[Glance, ...]:
        seconds = [*self.watcher.seconds, self.watcher.seconds[-1] + self.watcher.each]
        ends = [*self._survey().starts.tolist()[1:], len(seconds) - 1]
        end_of = dict(zip(self._survey().starts.tolist(), ends, strict=True))
        return tuple(
            Glance(seconds[start], seconds[end_of[start]], count) for start, count in seen.scenes.items() if count
        )

    def _survey(self) -> Survey:
        """What all questions have in common; found once until the video goes on."""
        if self._surveyed is None:
            self._surveyed = survey(self.watcher)
        return self._surveyed

    def _inputs(self, asked: Sequence[Turn], seen: Sequence[Seen]) -> dict[str, Any]:
        """Arguments of ``generate``: a cache with what is seen, and the rows behind it."""
        device = self.model.device
        held = len(seen[0])
        longest = max(len(turn.ids) for turn in asked)
        past = held + len(asked[0].before)
        ids = torch.zeros(len(asked), past + longest, dtype=torch.long)
        mask = torch.ones_like(ids)
        position = torch.zeros(self.watcher.positions.rows, *ids.shape, dtype=torch.long)
        for row, (turn, each) in enumerate(zip(asked, seen, strict=True)):
            pad = longest - len(turn.ids)
            ids[row, :held] = each.ids
            ids[row, held:past] = torch.tensor(turn.before, dtype=torch.long)
            ids[row, past + pad :] = torch.tensor(turn.ids)
            mask[row, past : past + pad] = 0
            first = self.watcher.behind + len(turn.before)
            position[:, row, past + pad :] = torch.arange(first, first + len(turn.ids))
        return {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "position_ids": (position if len(position) > 1 else position[0]).to(device),
            cache_name(self.model): cache_of_layers(self._late(seen, asked[0].said)),
        }

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
            watcher = self.watcher
            held = watcher.held()
            size = sum(block.bytes for block in held)
            seconds = watcher.duration
            return {
                "frames": len(watcher.similarity),
                "seconds": seconds,
                "segments": len(watcher.borders),
                "scenes": len(find_starts(watcher.similarity)),
                "tokens": self.watcher.length,
                "video_tokens": self.watcher.video_tokens,
                "held_tokens": sum(map(len, held)),
                "held_video_tokens": sum(block.video for block in held),
                "bytes": size,
                "bytes_per_second": size / seconds,
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


def _are_several(question: Any) -> bool:
    """Whether these are questions, and not one as text or as ids."""
    return isinstance(question, (list, tuple)) and bool(question) and not isinstance(question[0], int)


def watch(
    model: Any,
    processor: Any,
    video: Video,
    *,
    fps: float | None = None,
    watch_keep: float = 1.0,
    place: Place = "device",
    folder: Path | str | None = None,
    limit: int | None = None,
    longest: int | None = None,
    bits: int | None = None,
    **options: Any,
) -> Memory:
    """Watches a video once: its keys and values, from which every question takes what it is about.

    A video token sees the text in front of the video, its own segment up to itself, and a context that does not depend
    on any question: the last ``tails`` frames of the segments before, and the first frames of the ``context`` most
    novel scenes before. Rows behind the video see the text in front of it, what CAS chooses for them, and each other.

    Args:
        model: of transformers, of a known family; it stays as it is, compiled or not.
        processor: its processor; None if prompts come as a processor's outputs and as ids.
        video: a file, frames (T, height, width, 3) uint8, or a processor's outputs for a prompt with this video.
        fps: frames per second of the frames, or to sample from a file; 2 when None.
        watch_keep: fraction of each segment's video tokens that is remembered, the newest ones, whatever is asked.
        place: where keys, values and features are kept: "device" (the model's), "host" or "disk"; or several of these
            with a budget in bytes for each, ``{"device": 2**30, "host": 2**33, "disk": None}``: the newest segments are
            kept in the first place, and where the last one is full, old segments are thinned as by ``limit``.
        folder: of a memory on disk.
        limit: bytes of the memory, at most: the recent half stays whole, older segments are thinned by novelty.
        longest: frames after which a segment ends without a cut.
        bits: 8 keeps each key and value in eight bits from when its segment is over; as the model has them when None.
        **options: keep, segments, context, tails (1 unless it is given), scorer, balance, layer, ranks of
            :class:`segmo.options.Options`. With ``scorer="attention"`` scenes are relevant that the question pays
            attention to, in one ``layer`` of the decoder or, with ``layer="each"``, in every layer for itself. With
            ``ranks``, segments are dealt out to the ranks, which all make the same calls.

    Raises:
        OptionError: a wrong option, or a model of another family.
        PromptError: the video cannot be watched: not one video, or images beside it.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise OptionError(f"fps is {fps!r}; it must be a number of frames per second, above 0")
    known, each = parse(options)
    where = None if folder is None else Path(folder)
    chosen = MemoryOptions(known, each, watch_keep, place, where, limit, longest, bits)
    memory = Memory(model, processor, chosen, FPS if fps is None else fps)
    memory.extend(video)
    return memory
