"""The encoder's features of single frames of a file: from the cache, or made of those frames alone.

Legend: T frames of the language model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.ask.context import Context, Request, key_of
from segmo.ask.encode import encode_frames, frame_shape, process, trailing
from segmo.ask.file_index import FileIndex
from segmo.ask.frame_cache import FrameTensors, split
from segmo.ask.settings import checked_question


@dataclass(frozen=True)
class FramePixels:
    """What the processor made of some frames.

    Attributes:
        inputs: of the model.
        places: number of each such frame among those of ``inputs``.
    """

    inputs: dict[str, Any]
    places: dict[int, int]


@dataclass(frozen=True)
class FrameRequest:
    """Some frames of a file, on their way to features.

    Attributes:
        film: of the file, without pictures.
        file: hash of the file.
        numbers: the frames' pictures.
        prompt: the model's inputs for these frames, but for pixels.
        keys: of each frame's features, (T,).
        known: features that are there already, by key.
        cached: keys of those that the cache had.
        pixels: of frames that are to be encoded.
    """

    film: FileIndex
    file: str
    numbers: NDArray[np.int64]
    prompt: dict[str, Any]
    keys: tuple[str, ...]
    known: dict[str, FrameTensors]
    cached: frozenset[str]
    pixels: FramePixels


class FrameFeatures:
    """Features of frames of files.

    Args:
        context: the model and the cache.
        pictures: that make one frame.
    """

    def __init__(self, context: Context, pictures: int) -> None:
        self.context, self._count = context, pictures
        self._awaited: set[str] = set()  # features that earlier requests are about to make
        self._lock = threading.Lock()

    def prepare(
        self,
        request: Request,
        file: str,
        film: FileIndex,
        numbers: NDArray[np.int64],
        known: Mapping[str, FrameTensors],
    ) -> FrameRequest:
        """All but encoding: looks into the cache; decodes and processes what is not there.

        Args:
            request: of the question.
            file: hash of its file.
            film: of its file.
            numbers: pictures of the wanted frames, ascending.
            known: features that are at hand, by key.
        """
        context = self.context
        with context.timeline.measure("process", request.name):
            question = checked_question(request.question)
            prompt = process(context.loaded, film.clip.only(numbers), question, pixels=False)
        keys = self._keys(file, film, numbers, frame_shape(prompt))
        kept = _pieces(context, [key for key in keys if key not in known], request)
        there = {key: known[key] for key in keys if key in known} | kept
        with self._lock:
            left = there.keys() if film.decoded else there.keys() | self._awaited
            missing = [frame for frame, key in enumerate(keys) if key not in left]
            if context.store:
                self._awaited.update(keys[frame] for frame in missing)
        pixels = self._process(request, film, numbers, missing, frame_shape(prompt))
        return FrameRequest(film.without_pictures(), file, numbers, prompt, keys, there, frozenset(kept), pixels)

    def make(self, request: Request, wanted: FrameRequest) -> tuple[dict[str, FrameTensors], frozenset[str]]:
        """Features of the frames by their keys, and the keys of those that the cache had."""
        context, keys = self.context, wanted.keys
        try:
            with context.making(key_of("frames", wanted.file, context.loaded.fingerprint)):
                # Made meanwhile by an earlier request or by another process.
                kept = _pieces(context, [key for key in keys if key not in wanted.known], request)
                there = wanted.known | kept
                made = self._encode(request, wanted, [t for t, key in enumerate(keys) if key not in there])
                context.keep({key: (piece, "") for key, piece in made.items()})
        finally:
            with self._lock:
                self._awaited.difference_update(keys)
        return there | made, wanted.cached | kept.keys()

    def pictures_of(self, request: Request, film: FileIndex, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Sampled pictures by their numbers, ascending; the stage "decode" where they are not at hand."""
        with nullcontext() if film.decoded else self.context.timeline.measure("decode", request.name):
            return film.pictures(numbers)

    def _keys(self, file: str, film: FileIndex, numbers: NDArray[np.int64], shape: tuple[int, ...]) -> tuple[str, ...]:
        """Of each frame: the file, the model, the times of its pictures, and the size it is encoded at."""
        shared = (file, self.context.loaded.fingerprint, film.clip.frames.shape[1:3], shape)
        return tuple(key_of("frame", *shared, film.clip.seconds[part].tolist()) for part in self._parts(numbers))

    def _parts(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The pictures of each frame; the last one of a video may have fewer."""
        return np.split(numbers, range(self._count, len(numbers), self._count))

    def _process(
        self,
        request: Request,
        film: FileIndex,
        numbers: NDArray[np.int64],
        frames: list[int],
        shape: tuple[int, ...],
    ) -> FramePixels:
        """FramePixels of some of the frames, at the size that they have among all."""
        if not frames:
            return FramePixels({}, {})
        context, question = self.context, checked_question(request.question)
        parts = self._parts(np.arange(len(numbers)))
        places = np.concatenate([parts[frame] for frame in frames])
        pictures = self.pictures_of(request, film, numbers[places])
        with context.timeline.measure("process", request.name):
            alone = replace(film.clip.only(numbers[places]), frames=pictures)
            inputs = process(context.loaded, alone, question)
            if frame_shape(inputs) == shape:
                return FramePixels(inputs, {frame: place for place, frame in enumerate(frames)})
            whole = film.clip.only(numbers)  # this processor scales a frame by how many there are (Qwen3-VL)
            whole.frames[places] = pictures
            return FramePixels(process(context.loaded, whole, question), {frame: frame for frame in frames})

    def _encode(self, request: Request, wanted: FrameRequest, frames: list[int]) -> dict[str, FrameTensors]:
        if not frames:
            return {}
        context, pixels = self.context, wanted.pixels
        if not pixels.places.keys() >= set(frames):  # what an earlier request was to make is not there
            shape = frame_shape(wanted.prompt)
            pixels = self._process(request, wanted.film, wanted.numbers, frames, shape)
        with context.timeline.measure("encode", request.name):
            places = [pixels.places[frame] for frame in frames]
            encoded = encode_frames(
                context.loaded, pixels.inputs, places, lambda done, total: context.progress("encode", done, total)
            )
            pieces = split(encoded, len(frames), trailing(context.loaded))
        return {wanted.keys[frame]: piece for frame, piece in zip(frames, pieces, strict=True)}


def _pieces(context: Context, keys: list[str], request: Request) -> dict[str, FrameTensors]:
    return {key: tensors for key, (tensors, _) in context.kept(keys, request).items()}
