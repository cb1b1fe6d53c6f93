"""Frames chosen by scene and question before they are encoded (``segmo run --frames N``). Three things stay on disk:

- The film: times, looks and scenes of all sampled frames, by the file's bytes and how it is read.
- Features for relevance of the frame that stands for each scene, by film and scoring model.
- The encoder's features of each frame that was chosen once, by file, model and time.

A further question needs its own words scored, and those frames decoded and encoded that no question chose before.

Legend: T frames of the language model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segmo.ask.context import Context, Request, key_of
from segmo.ask.encode import encode_frames, features_of, process, trailing
from segmo.ask.features import Features
from segmo.ask.film import Film
from segmo.ask.loaded import fingerprint
from segmo.ask.pieces import Piece, join, split
from segmo.ask.settings import checked_question
from segmo.frames.clips import frame_choice, looks_of


@dataclass(frozen=True)
class Ready:
    """What the processors made of a request.

    Attributes:
        film: of its video, without pictures.
        file: hash of the file.
        numbers: the chosen pictures.
        keys: of the features of each chosen frame, (T,).
        pieces: features that the cache had.
        shown: chosen frames whose pictures stand in ``inputs``; the others are black there.
        inputs: of the model.
        cached: what else came from the cache.
    """

    film: Film
    file: str
    numbers: NDArray[np.int64]
    keys: tuple[str, ...]
    pieces: dict[str, Piece]
    shown: frozenset[int]
    inputs: dict[str, Any]
    cached: tuple[str, ...]


class Chosen:
    """From a file to the features of the frames that a question is about."""

    def __init__(self, context: Context) -> None:
        settings, loaded = context.settings, context.loaded
        assert settings.frames is not None
        self.context = context
        self.choice = frame_choice(
            loaded.model, loaded.processor, settings.frames, settings.relevance, settings.options.balance
        )
        self._scorer_key = fingerprint(settings.relevance, "auto") if settings.relevance else loaded.fingerprint
        self._awaited: set[str] = set()  # features that the requests before this one are about to make
        self._lock = threading.Lock()

    def prepare(self, request: Request) -> Ready:
        """All but encoding the chosen frames, in the thread that runs ahead."""
        context, question = self.context, checked_question(request.question)
        file = context.hash(request)
        film, looked, cached = self._look(request, file)
        with context.timeline.measure("choose", request.name):
            relevance = self.choice.scorer.score_features(looked, question)
            numbers = self.choice.choose(film.clip, film.looks, relevance)
        keys = self._keys(file, film, numbers)
        pieces: dict[str, Piece] = {key: entry[0] for key, entry in context.kept(keys, request).items()}
        with self._lock:
            known = pieces.keys() if film.decoded else pieces.keys() | self._awaited
            wanted = [frame for frame, key in enumerate(keys) if key not in known]
            if context.store:
                self._awaited.update(keys[frame] for frame in wanted)
        inputs = self._process(request, film, numbers, wanted)
        return Ready(film.without_pictures(), file, numbers, keys, pieces, frozenset(wanted), inputs, cached)

    def features(self, request: Request, ready: Ready) -> tuple[Features, tuple[str, ...]]:
        """Features of the chosen frames, and what came from the cache."""
        context, keys = self.context, ready.keys
        try:
            with context.making(key_of("frames", ready.file, context.loaded.fingerprint)):
                missing = [key for key in keys if key not in ready.pieces]
                found = context.kept(missing, request)  # by the request before, or by another process
                pieces = ready.pieces | {key: entry[0] for key, entry in found.items()}
                new = [frame for frame, key in enumerate(keys) if key not in pieces]
                made = self._encode(request, ready, new)
                context.keep({key: (piece, "") for key, piece in made.items()})
        finally:
            with self._lock:
                self._awaited.difference_update(keys)
        encoded = join([made[key] if key in made else pieces[key] for key in keys])
        clip = ready.film.clip.only(ready.numbers)
        features = features_of(context.loaded, ready.inputs, encoded, clip, checked_question(request.question))
        share = (f"features of {len(pieces)} of {len(keys)} frames",) if pieces else ()
        return features, ready.cached + share

    def _look(self, request: Request, file: str) -> tuple[Film, Tensor, tuple[str, ...]]:
        """The film, features of the frame that stands for each scene, and what of this came from the cache."""
        context, pictures = self.context, self.choice.pictures
        film_key = key_of("film", file, pictures, *context.reading())
        look_key = key_of("relevance", film_key, self._scorer_key)
        with context.making(film_key):
            kept = context.kept([film_key, look_key], request)
            if film_key in kept:
                film = Film.from_disk(request.video, *kept[film_key])
            else:
                clip = context.read(request)
                film = Film(clip, looks_of(clip.frames, pictures), decoded=True)
                if not clip.notes:  # in a damaged file, seeking may end at another frame
                    context.keep({film_key: film.to_disk()})
            if look_key in kept:
                looked = kept[look_key][0]["looked"]
            else:
                with context.timeline.measure("choose", request.name):
                    looked = self._encode_heads(film)
                context.keep({look_key: ({"looked": looked.cpu().contiguous()}, "")})
        named = {film_key: "scenes", look_key: "relevance features"}
        return film, looked, tuple(name for key, name in named.items() if key in kept)

    def _encode_heads(self, film: Film) -> Tensor:
        heads = self.choice.heads(film.clip, film.looks)
        pictures = film.pictures(np.concatenate(heads))
        parts = np.split(pictures, np.cumsum([len(head) for head in heads])[:-1])
        return self.choice.scorer.encode_frames(parts)

    def _keys(self, file: str, film: Film, numbers: NDArray[np.int64]) -> tuple[str, ...]:
        """A processor may scale pictures by their number (Qwen3-VL), so the number is in the key too."""
        size, seconds = film.clip.frames.shape[1:3], film.clip.seconds
        shared = (file, self.context.loaded.fingerprint, size, len(numbers))
        return tuple(key_of("frame", *shared, seconds[part].tolist()) for part in self._parts(numbers))

    def _parts(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The pictures of each chosen frame; the last one of a video may have fewer."""
        return np.split(numbers, range(self.choice.pictures, len(numbers), self.choice.pictures))

    def _process(self, request: Request, film: Film, numbers: NDArray[np.int64], wanted: list[int]) -> dict[str, Any]:
        """The model's inputs, with the pictures of the wanted frames and black ones for the others."""
        context = self.context
        clip = film.clip.only(numbers)
        if wanted and not film.decoded:
            places = np.concatenate([self._parts(np.arange(len(numbers)))[frame] for frame in wanted])
            with context.timeline.measure("decode", request.name):
                clip.frames[places] = film.pictures(numbers[places])
        with context.timeline.measure("process", request.name):
            return process(context.loaded, clip, checked_question(request.question))

    def _encode(self, request: Request, ready: Ready, frames: list[int]) -> dict[str, Piece]:
        """Features of some of the chosen frames, by their keys."""
        if not frames:
            return {}
        context, inputs = self.context, ready.inputs
        if not ready.shown.issuperset(frames):  # what the request before was to make is not there
            inputs = self._process(request, ready.film, ready.numbers, frames)
        with context.timeline.measure("encode", request.name):
            encoded = encode_frames(
                context.loaded, inputs, frames, lambda done, total: context.progress("encode", done, total)
            )
            pieces = split(encoded, len(frames), trailing(context.loaded))
        return {ready.keys[frame]: piece for frame, piece in zip(frames, pieces, strict=True)}
