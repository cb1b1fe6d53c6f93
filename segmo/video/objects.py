"""Decoders of other libraries as videos: torchcodec's ``VideoDecoder``, decord's ``VideoReader``, and their like."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.video.pictures import of_array, video_frame
from segmo.video.source import VideoError
from segmo.video.times import Index, dense_rate

BATCH = 16  # frames that are decoded at a time


@dataclass(frozen=True)
class Decoder:
    """Frames by their number, with the times at which they are shown.

    Attributes:
        name: for messages.
        reader: the object.
        key: of its own, because what it would give cannot be known without decoding all of it.
    """

    name: str
    reader: Any
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def digest(self) -> str:
        """Something that no other video has."""
        return self.key

    def check(self) -> None:
        """Whether there is a frame.

        Raises:
            VideoError: there is none.
        """
        if self.count() < 1:
            raise VideoError(f"{self} has no frames")

    def count(self) -> int:
        """How many frames it has."""
        raise NotImplementedError

    def times(self) -> tuple[NDArray[np.float64], float, float]:
        """When each frame is shown and when the last one ends, in seconds, and the frames per second."""
        raise NotImplementedError

    def batch(self, numbers: Sequence[int]) -> Any:
        """Frames by their numbers, as an array or tensor."""
        raise NotImplementedError

    def index(self, fps: float) -> Index:
        """The time line."""
        self.check()
        stamps, end, rate = self.times()
        first = of_array(self.batch([0])).loads[0]()
        times = stamps - stamps[0]
        size = first.shape[1], first.shape[0]
        return Index(float(stamps[0]), times, times, rate, dense_rate(times, rate), end - float(stamps[0]), size, size)

    def frames(self, index: Index, start: float) -> Iterator[tuple[float, Any]]:
        """Times and frames, from the one that is shown at ``start``."""
        first = max(0, int(np.searchsorted(index.times, start + index.slack, side="right")) - 1)
        for place in range(first, len(index.times), BATCH):
            numbers = range(place, min(place + BATCH, len(index.times)))
            for number, load in zip(numbers, of_array(self.batch(numbers)).loads, strict=True):
                yield float(index.times[number]), video_frame(load())

    def __str__(self) -> str:
        return self.name


class Torchcodec(Decoder):
    """``torchcodec.decoders.VideoDecoder``."""

    def count(self) -> int:
        """How many frames it has."""
        return int(self.reader.metadata.num_frames or 0)

    def times(self) -> tuple[NDArray[np.float64], float, float]:
        """Of each frame as the decoder gives it, which decodes all of them once."""
        rate = float(getattr(self.reader.metadata, "average_fps", None) or 25.0)
        stamps: list[float] = []
        lasts = 0.0
        for place in range(0, self.count(), BATCH):
            found = self.reader.get_frames_at(list(range(place, min(place + BATCH, self.count()))))
            stamps += np.asarray(found.pts_seconds, dtype=np.float64).tolist()
            lasts = float(np.asarray(found.duration_seconds, dtype=np.float64)[-1])
        return np.asarray(stamps), stamps[-1] + (lasts if lasts > 0 else 1 / rate), rate

    def batch(self, numbers: Sequence[int]) -> Any:
        """Frames by their numbers."""
        return self.reader.get_frames_at(list(numbers)).data


class Decord(Decoder):
    """``decord.VideoReader``."""

    def count(self) -> int:
        """How many frames it has."""
        return len(self.reader)

    def times(self) -> tuple[NDArray[np.float64], float, float]:
        """As the file has them, or at an even rate where the object has no times."""
        count, rate = self.count(), float(self.reader.get_avg_fps())
        if not hasattr(self.reader, "get_frame_timestamp"):
            return np.arange(count) / rate, count / rate, rate
        found = np.asarray(self.reader.get_frame_timestamp(list(range(count))), dtype=np.float64)
        return found[:, 0], float(found[-1, 1]), rate

    def batch(self, numbers: Sequence[int]) -> Any:
        """Frames by their numbers."""
        found = self.reader.get_batch(list(numbers))
        return found.asnumpy() if hasattr(found, "asnumpy") else found


def decoder_of(given: Any) -> Decoder | None:
    """The decoder that an object is, or None."""
    name = f"a {type(given).__module__.split('.')[0]}.{type(given).__name__}"
    if hasattr(given, "get_frames_at") and hasattr(given, "metadata"):
        return Torchcodec(name, given)
    if hasattr(given, "get_batch") and hasattr(given, "get_avg_fps"):
        return Decord(name, given)
    return None
