"""One stretch of a file: frames sampled, and neighbouring frames compared."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.report.timeline import Timeline
from segmo.video.compare import Changes, Comparer
from segmo.video.decode import Damage, Span, decode
from segmo.video.index import Index
from segmo.video.pixels import Picture
from segmo.video.sample import Sampler, count_samples
from segmo.video.scenes import SceneOptions


@dataclass
class Chunk:
    """What a stretch gave.

    Attributes:
        times: when each of its frames is shown.
        changes: from one frame to the next; empty without scenes.
        damage: what could not be decoded.
    """

    times: array[float] = field(default_factory=lambda: array("d"))
    changes: Changes = field(default_factory=Changes)
    damage: Damage = field(default_factory=Damage)


class Frames:
    """Sampled frames of all chunks in one array, which is made when the first comes."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._pixels: NDArray[np.uint8] | None = None
        self._there = np.zeros(count, dtype=np.bool_)

    def put(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Takes sampled frame ``number``, (height, width, 3) uint8."""
        with self._lock:
            if self._pixels is None:
                self._pixels = np.empty((len(self._there), *pixels.shape), dtype=np.uint8)
        self._pixels[number] = pixels
        self._there[number] = True

    def found(self) -> tuple[NDArray[np.uint8] | None, NDArray[np.int64]]:
        """The frames that came, (F, height, width, 3), and their numbers, (F,)."""
        numbers = np.flatnonzero(self._there)
        if self._pixels is None or len(numbers) == len(self._there):
            return self._pixels, numbers
        if numbers[-1] == len(numbers) - 1:  # only the end is missing: no copy
            return self._pixels[: len(numbers)], numbers
        return self._pixels[numbers], numbers


def read_chunk(
    path: Path,
    index: Index,
    span: Span,
    fps: float,
    frames: Frames,
    picture: Picture,
    scenes: SceneOptions | None,
    step: Callable[[], None],
    timeline: Timeline,
) -> Chunk:
    """Decodes a stretch once: sampled frames go to ``frames``, all frames are compared with their neighbours.

    Args:
        path: the file.
        index: of this file.
        span: the stretch.
        fps: frames to sample per second.
        frames: takes the sampled ones.
        picture: brings a sampled frame to its size; of this chunk alone.
        scenes: compare neighbours, for a detector with these options.
        step: called after each frame.
        timeline: gets "decode" and "scenes", which take turns.
    """
    comparer = Comparer(scenes) if scenes else None
    chunk = Chunk(changes=comparer.changes) if comparer else Chunk()
    sampler = Sampler(fps, span.start, count_samples(index, fps))
    began = timeline.now()

    def keep(picks: Iterable[tuple[int, Any]]) -> None:
        for number, frame in picks:
            frames.put(number, picture(frame))

    try:
        for shown, frame in decode(path, index, span, chunk.damage):
            keep(sampler.add(shown, frame))
            chunk.times.append(shown)
            if comparer:
                comparer.add(frame)
            step()
        if comparer:
            comparer.end()
        if chunk.times:
            whole = span.end <= index.duration  # the next stretch starts where this one ends
            keep(sampler.end(span.end if whole else chunk.times[-1] + 1 / index.rate))
    finally:
        end, comparing = timeline.now(), comparer.busy if comparer else 0.0
        timeline.add("decode", began, end, busy=end - began - comparing)
        if comparer:
            timeline.add("scenes", began, end, busy=comparing)
    return chunk
