"""All sampled frames of a file, or those that a function of the caller's chooses, as one entry of the cache."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from segmo.ask.context import Context, Request, key_of
from segmo.ask.encode import process
from segmo.ask.features import Features
from segmo.ask.rank_encode import encode
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
            found = context.kept([key], request)
            if found:
                return PreparedVideo(key, Features.from_disk(*found[key]))
            with self._lock:
                if key in self._making:
                    return PreparedVideo(key, None)  # the request before is about to encode this video
                self._making.add(key)
        clip = context.read(request)
        if context.settings.choose is not None:
            with context.timeline.measure("choose", request.name):
                clip = clip.only(context.settings.choose(clip, question))
        with context.timeline.measure("process", request.name):
            return PreparedVideo(key, None, clip, process(context.loaded, clip, question))

    def features(self, request: Request, ready: PreparedVideo) -> tuple[Features, tuple[str, ...]]:
        """Features of the video, and what came from the cache."""
        if self.context.ranks.world > 1:
            return self._together(request, ready)
        if ready.features is not None:
            return ready.features, CACHED
        with self.context.making(ready.key):
            found = self.context.kept([ready.key], request)  # another request or process may have been faster
            if found:
                return Features.from_disk(*found[ready.key]), CACHED
            features = self._encode(request, ready)
            self.context.keep({ready.key: features.to_disk()})
            with self._lock:
                self._making.discard(ready.key)
            return features, ()

    def _together(self, request: Request, ready: PreparedVideo) -> tuple[Features, tuple[str, ...]]:
        """All ranks encode, or none does: one may have found features on the disk where another came too early."""
        ranks = self.context.ranks
        here = torch.tensor([ready.features is not None], device=self.context.loaded.model.device)
        if bool(ranks.gather(here.long(), "features on disk").all()) and ready.features is not None:
            return ready.features, CACHED
        features = self._encode(request, ready)
        if ranks.rank == 0:
            self.context.keep({ready.key: features.to_disk()})
        with self._lock:
            self._making.discard(ready.key)
        return features, ()

    def _key(self, request: Request, question: str) -> str:
        context, choose = self.context, self.context.settings.choose
        parts = [context.hash(request), context.loaded.fingerprint, *context.reading()]
        if choose is not None:
            parts += [question, getattr(choose, "key", repr(choose))]
        return key_of("whole", *parts)

    def _encode(self, request: Request, ready: PreparedVideo) -> Features:
        if ready.clip is None or ready.inputs is None:  # the request before failed to encode this video
            ready = self.prepare(request, again=True)
        assert ready.clip is not None
        assert ready.inputs is not None
        context = self.context
        with context.timeline.measure("encode", request.name):
            return encode(
                context.loaded,
                ready.inputs,
                ready.clip,
                checked_question(request.question),
                lambda done, total: context.progress("encode", done, total),
                context.ranks,
            )
