"""Frames chosen by scene and question before they are encoded (``segmo run --frames N``). Three things stay on disk:

- The film: times, looks and scenes of all sampled frames, by the file's bytes and how it is read.
- Features for relevance of the frame that stands for each scene: by film and image-text model, or, where the model
  scores by itself, its encoder's own.
- The encoder's features of each frame that was chosen or scored once, by file, model and time.

A further question needs its own words scored, and those frames decoded and encoded that no question needed before.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmo.ask.checkpoint import fingerprint
from segmo.ask.context import Context, Request, key_of
from segmo.ask.encode import features_of
from segmo.ask.features import Features
from segmo.ask.file_index import FileIndex
from segmo.ask.frame_cache import FrameTensors, join
from segmo.ask.frame_features import FrameFeatures, FrameRequest
from segmo.ask.room import fitted
from segmo.ask.settings import checked_question
from segmo.upstream.clips import frame_choice, looks_of


@dataclass(frozen=True)
class SceneFeatures:
    """What a question is scored against.

    Attributes:
        features: of the frame that stands for each scene, (S, ...).
        known: the cache had all of them.
        pieces: the encoder's features of the same frames, by key, where those were made.
        cached: keys of those among them that the cache had.
    """

    features: Tensor
    known: bool
    pieces: Mapping[str, FrameTensors] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PreparedFrames:
    """The chosen frames of a request.

    Attributes:
        wanted: the frames.
        scored: what the question was scored against.
        known: the cache had the film.
        note: what is to be said of their number.
    """

    wanted: FrameRequest
    scored: SceneFeatures
    known: bool
    note: str = ""


class ChosenFrames:
    """From a file to the features of the frames that a question is about."""

    def __init__(self, context: Context) -> None:
        settings, loaded = context.settings, context.loaded
        assert settings.frames is not None
        self.context = context
        self.choice = frame_choice(
            loaded.model, loaded.processor, settings.frames, settings.relevance, settings.options.balance
        )
        self.frames = FrameFeatures(context, self.choice.pictures)
        self._scorer = fingerprint(settings.relevance, "auto") if settings.relevance else ""

    def prepare(self, request: Request) -> PreparedFrames:
        """All but encoding the chosen frames, in the thread that runs ahead."""
        context, choice = self.context, self.choice
        file = context.hash(request)
        film_key = key_of("film", file, choice.pictures, *context.reading())
        film, known = self._film(request, film_key)
        heads = choice.heads(film.clip, film.looks)
        scored = self._other(request, film_key, film, heads) if self._scorer else self._own(request, file, film, heads)
        with context.timeline.measure("choose", request.name):
            relevance = choice.scorer.score_features(scored.features, checked_question(request.question))

            def fewer(count: int) -> NDArray[np.int64]:
                chosen = replace(choice, wanted=max(1, count // choice.pictures))
                return chosen.choose(film.clip, film.looks, relevance)

            numbers = choice.choose(film.clip, film.looks, relevance)
            numbers, note = fitted(context.loaded, film.clip, numbers, checked_question(request.question), fewer)
        return PreparedFrames(self.frames.prepare(request, file, film, numbers, scored.pieces), scored, known, note)

    def features(self, request: Request, ready: PreparedFrames) -> tuple[Features, tuple[str, ...]]:
        """Features of the chosen frames, and what came from the cache."""
        context, wanted = self.context, ready.wanted
        if ready.note:
            warnings.warn(f"{request.source}: {ready.note}", stacklevel=2)
        pieces, cached = self.frames.make(request, wanted)
        encoded = join([pieces[key] for key in wanted.keys])
        clip = wanted.film.clip.only(wanted.numbers).noted(ready.note)
        features = features_of(context.loaded, wanted.prompt, encoded, clip, checked_question(request.question))
        count = len((cached | ready.scored.cached) & set(wanted.keys))
        named = {
            "scenes": ready.known,
            "features for relevance": ready.scored.known,
            f"features of {count} of {len(wanted.keys)} frames": count > 0,
        }
        return features, tuple(name for name, there in named.items() if there)

    def _film(self, request: Request, key: str) -> tuple[FileIndex, bool]:
        """The film, and whether the cache had it."""
        context = self.context
        with context.making(key):
            kept = context.kept([key], request)
            if kept:
                return FileIndex.from_disk(request.source, *kept[key]), True
            clip = context.read(request)
            with context.timeline.measure("choose", request.name):
                film = FileIndex(clip, looks_of(clip.frames, self.choice.pictures), decoded=True)
            if not clip.damaged:  # in such a file, seeking may end at another frame
                context.keep({key: film.to_disk()})
            return film, False

    def _own(self, request: Request, file: str, film: FileIndex, heads: list[NDArray[np.int64]]) -> SceneFeatures:
        """By the model's own encoder: a frame that is chosen afterwards is encoded already."""
        wanted = self.frames.prepare(request, file, film, np.concatenate(heads), {})
        pieces, cached = self.frames.make(request, wanted)
        features = torch.stack([pieces[key]["pooled"].flatten(0, -2) for key in wanted.keys])
        return SceneFeatures(features, cached >= set(wanted.keys), pieces, cached)

    def _other(self, request: Request, film_key: str, film: FileIndex, heads: list[NDArray[np.int64]]) -> SceneFeatures:
        """By an image-text model."""
        context, key = self.context, key_of("relevance", film_key, self._scorer)
        with context.making(key):
            kept = context.kept([key], request)
            if kept:
                return SceneFeatures(kept[key][0]["features"], True)
            pictures = self.frames.pictures_of(request, film, np.concatenate(heads))
            with context.timeline.measure("choose", request.name):
                parts = np.split(pictures, np.cumsum([len(head) for head in heads])[:-1])
                features = self.choice.scorer.encode_frames(parts).cpu().contiguous()
            context.keep({key: ({"features": features}, "")})
            return SceneFeatures(features, False)
