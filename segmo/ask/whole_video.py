"""All sampled frames of a file, or those that a function of the caller's chooses, as one entry of the cache."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segmo.ask.context import Context, Request, key_of
from segmo.ask.encode import process
from segmo.ask.features import Features
from segmo.ask.prompt import chat, short_ids
from segmo.ask.rank_encode import encode
from segmo.ask.room import fitted, is_too_long
from segmo.ask.settings import checked_question
from segmo.video import Clip

CACHED = ("features of the video",)


@dataclass(frozen=True)
class PreparedVideo:
    """What the processors made of a request: features from the disk, or a clip with the model's inputs."""

    key: str
    features: Features | None
    clip: Clip | None = None
    inputs: dict[str, Any] | None = None
    note: str = ""


class WholeVideo:
    """From a file to the features of its frames, all together."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._making: set[str] = set()
        self._lock = threading.Lock()

    def prepare(self, request: Request, again: bool = False) -> PreparedVideo:
        """All that needs no model, in the thread that runs ahead."""
        context, question = self.context, checked_question(request.question)
        key = self._key(request, question)
        if context.store and not again:
            found = self._known(request, key, question)
            if found is not None:
                return PreparedVideo(key, found)
            with self._lock:
                if key in self._making:
                    return PreparedVideo(key, None)  # the request before is about to encode this video
                self._making.add(key)
        clip, note = context.read(request), ""
        if context.settings.choose is not None:
            with context.timeline.measure("choose", request.name):
                clip = clip.only(context.settings.choose(clip, question))
        with context.timeline.measure("process", request.name):
            if context.settings.choose is None:
                numbers, note = fitted(context.loaded, clip, np.arange(len(clip.frames)), question)
                clip = clip.only(numbers).noted(note)
            inputs = process(context.loaded, clip, question)
        return PreparedVideo(self._short_key(key, question) if note else key, None, clip, inputs, note)

    def features(self, request: Request, ready: PreparedVideo) -> tuple[Features, tuple[str, ...]]:
        """Features of the video, and what came from the cache."""
        if self.context.ranks.world > 1:
            return self._together(request, ready)
        if ready.features is not None:
            return ready.features, CACHED
        question = checked_question(request.question)
        key = self._key(request, question)
        with self.context.making(key):
            found = self._known(request, key, question)  # another request or process may have been faster
            if found is not None:
                return found, CACHED
            return self._made(request, ready), ()

    def _together(self, request: Request, ready: PreparedVideo) -> tuple[Features, tuple[str, ...]]:
        """All ranks encode, or none does: one may have found features on the disk where another came too early."""
        ranks = self.context.ranks
        here = torch.tensor([ready.features is not None], device=self.context.loaded.model.device)
        if bool(ranks.gather(here.long(), "features on disk").all()) and ready.features is not None:
            return ready.features, CACHED
        return self._made(request, ready), ()

    def _made(self, request: Request, ready: PreparedVideo) -> Features:
        if ready.clip is None or ready.inputs is None:  # the request before failed to encode this video
            ready = self.prepare(request, again=True)
        assert ready.clip is not None
        assert ready.inputs is not None
        if ready.note:
            warnings.warn(f"{request.source}: {ready.note}", stacklevel=2)
        features = self._encode(request, ready.clip, ready.inputs)
        if self.context.ranks.rank == 0:
            self.context.keep({ready.key: features.to_disk()})
        with self._lock:
            self._making.discard(self._key(request, checked_question(request.question)))
        return features

    def _known(self, request: Request, key: str, question: str) -> Features | None:
        """Features on the disk: of all frames if there is room for them, or of as many as fit beside this question."""
        for each in (key, self._short_key(key, question)):
            kept = self.context.kept([each], request)
            found = Features.from_disk(*kept[each]) if kept else None
            if found is not None:
                too_long = is_too_long(self.context.loaded, found.prompt(self.context.loaded, question))
                if too_long is None or each != key:
                    return found
        return None

    def _key(self, request: Request, question: str) -> str:
        context, choose = self.context, self.context.settings.choose
        parts = [context.hash(request), context.loaded.fingerprint, *context.reading()]
        if choose is not None:
            parts += [question, getattr(choose, "key", repr(choose))]
        return key_of("whole", *parts)

    def _short_key(self, key: str, question: str) -> str:
        """Of the frames that fit beside a question of so many tokens."""
        loaded = self.context.loaded
        return key_of(
            "fitted", key, len(short_ids(loaded.processor, chat(loaded.processor, question), loaded.video_token))
        )

    def _encode(self, request: Request, clip: Clip, inputs: dict[str, Any]) -> Features:
        context = self.context
        with context.timeline.measure("encode", request.name):
            return encode(
                context.loaded,
                inputs,
                clip,
                checked_question(request.question),
                lambda done, total: context.progress("encode", done, total),
                context.ranks,
            )
