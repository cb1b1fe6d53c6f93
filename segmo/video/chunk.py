"""One stretch of a video: frames sampled, and neighbouring frames compared."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.report.timeline import Timeline
from segmo.video.compare import Changes, Comparer
from segmo.video.decode import Span, decode
from segmo.video.given import Source
from segmo.video.packets import Damage
from segmo.video.pixels import Picture
from segmo.video.sample import Sampler, Samples
from segmo.video.scenes import SceneOptions
from segmo.video.times import Index


@dataclass(frozen=True)
class Border:
    """A frame at which one stretch ends and the next begins, as one of the two decoded it."""

    time: float
    pixels: NDArray[np.uint8]

    def same(self, other: Border | None) -> bool:
        """Whether both stretches found the same frame, so that decoding may start there."""
        return other is not None and self.time == other.time and np.array_equal(self.pixels, other.pixels)


@dataclass
class Chunk:
    """What a stretch gave.

    Attributes:
        times: when each of its frames is shown.
        changes: from one frame to the next; empty without scenes.
        damage: what could not be decoded.
        head: its first frame, where another stretch stands before it.
        tail: the frame behind its last one, where another stretch follows.
    """

    times: array[float] = field(default_factory=lambda: array("d"))
    changes: Changes = field(default_factory=Changes)
    damage: Damage = field(default_factory=Damage)
    head: Border | None = None
    tail: Border | None = None


class Frames:
    """Sampled frames of all chunks in one array, which is made when the first comes."""

    def __init__(self, samples: Samples) -> None:
        self._lock = threading.Lock()
        self._first = samples.first
        self._pixels: NDArray[np.uint8] | None = None
        self._there = np.zeros(samples.count, dtype=np.bool_)

    def put(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Takes sampled frame ``number``, (height, width, 3) uint8."""
        with self._lock:
            if self._pixels is None:
                self._pixels = np.empty((len(self._there), *pixels.shape), dtype=np.uint8)
        self._pixels[number - self._first] = pixels
        self._there[number - self._first] = True

    def found(self) -> tuple[NDArray[np.uint8] | None, NDArray[np.int64]]:
        """The frames that came, (F, height, width, 3), and their numbers, (F,)."""
        places = np.flatnonzero(self._there)
        numbers = places + self._first
        if self._pixels is None or len(places) == len(self._there):
            return self._pixels, numbers
        if places[-1] == len(places) - 1:  # only the end is missing: no copy
            return self._pixels[: len(places)], numbers
        return self._pixels[places], numbers


def read_chunk(
    source: Source,
    index: Index,
    span: Span,
    samples: Samples,
    frames: Frames,
    picture: Picture,
    scenes: SceneOptions | None,
    step: Callable[[], None],
    timeline: Timeline,
) -> Chunk:
    """Decodes a stretch once: sampled frames go to ``frames``, all frames are compared with their neighbours.

    Args:
        source: the video.
        index: of it.
        span: the stretch.
        samples: what to sample.
        frames: takes the sampled ones.
        picture: brings a sampled frame to its size; of this chunk alone.
        scenes: compare neighbours, for a detector with these options.
        step: called after each frame.
        timeline: gets "decode" and "scenes", which take turns.
    """
    comparer: Comparer | None = None
    chunk = Chunk()
    sampler = Sampler(samples, span.start, index.slack)
    began = timeline.now()

    def keep(picks: Iterable[tuple[int, Any]]) -> None:
        for number, frame in picks:
            frames.put(number, picture(frame))

    try:
        # Without an end: the first frame of the next stretch shows whether decoding could start there.
        for shown, frame in decode(source, index, Span(span.start), chunk.damage):
            if shown >= span.end - index.slack:
                chunk.tail = Border(shown, picture(frame))
                break
            if span.start > 0 and chunk.head is None:
                chunk.head = Border(shown, picture(frame))
            keep(sampler.add(shown, frame))
            chunk.times.append(shown)
            if scenes:
                comparer = comparer or Comparer(scenes, index.stored)
                comparer.add(frame)
            step()
        if comparer:
            comparer.end()
            chunk.changes = comparer.changes
        if chunk.times:
            keep(sampler.end(span.end if chunk.tail else _end(index, chunk.times[-1])))
    finally:
        end, comparing = timeline.now(), comparer.busy if comparer else 0.0
        timeline.add("decode", began, end, busy=end - began - comparing)
        if comparer:
            timeline.add("scenes", began, end, busy=comparing)
    return chunk


def _end(index: Index, last: float) -> float:
    """When the frame of that time ends, if it is the last that can be decoded."""
    return index.end if last >= float(index.times[-1]) - index.slack else last + 1 / index.rate
