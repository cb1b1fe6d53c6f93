"""What both ways from a file to features share: the model, the settings, the cache and the time line."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from segmo.ask.cache import TensorCache
from segmo.ask.checkpoint import Checkpoint
from segmo.ask.settings import Settings
from segmo.report.timeline import Timeline
from segmo.runtime.distributed.ranks import Ranks
from segmo.video import Clip, read
from segmo.video.given import Given, Source, as_source
from segmo.video.source import File, VideoError

VERSION = 5  # raised whenever the same file and settings would give another entry

Progress = Callable[[str, int, int], None]
Entry = tuple[Mapping[str, Tensor], str]


@dataclass(frozen=True)
class Request:
    """A question about a video, in any form that :func:`segmo.video.read` takes, and its name in the time line."""

    video: Given
    question: str
    name: str = ""

    @cached_property
    def source(self) -> Source:
        """The video, ready to be read.

        Raises:
            VideoError: it is in no form that can be.
        """
        return as_source(self.video)

    @cached_property
    def digest(self) -> str:
        """Hash of what the video holds."""
        _ = self.state
        return self.source.digest()

    @cached_property
    def state(self) -> tuple[int, ...]:
        """What would change with the video's file, from before the hash was made."""
        return self.source.state() if isinstance(self.source, File) else ()

    def check_unchanged(self) -> None:
        """Whether what was read is what the hash was made of.

        Raises:
            VideoError: the file was written meanwhile.
        """
        if isinstance(self.source, File) and self.source.state() != self.state:
            raise VideoError(f"{self.source} was changed while it was read; ask again once it is complete")


@dataclass(frozen=True)
class Context:
    """What a run works with.

    Attributes:
        loaded: the model.
        settings: how.
        store: keeps what may serve further questions; None keeps nothing.
        timeline: gets every stage.
        progress: called with (stage, done, total).
        ranks: that answer together and share the frames to be encoded.
    """

    loaded: Checkpoint
    settings: Settings
    store: TensorCache | None
    timeline: Timeline
    progress: Progress
    ranks: Ranks = field(default_factory=lambda: Ranks(None))

    def hash(self, request: Request) -> str:
        """Of the video's bytes."""
        with self.timeline.measure("hash", request.name):
            return request.digest

    def reading(self) -> tuple[Any, ...]:
        """All that decides what is read from a file, for keys."""
        settings, loaded = self.settings, self.loaded
        sampling = (settings.fps or loaded.fps, loaded.size, loaded.max_pixels, settings.max_frames)
        return (*sampling, dataclasses.astuple(settings.scenes))

    def read(self, request: Request) -> Clip:
        """The sampled frames and scenes of a file."""
        settings, inner = self.settings, Timeline()
        offset = self.timeline.now()
        clip = read(
            request.source,
            settings.fps or self.loaded.fps,
            self.loaded.size,
            max_pixels=self.loaded.max_pixels,
            max_frames=settings.max_frames,
            scenes=settings.scenes,
            workers=settings.workers,
            progress=lambda done, total: self.progress("decode, scenes", done, total),
            timeline=inner,
        )
        request.check_unchanged()
        for event in inner.events:
            self.timeline.add(event.stage, event.start + offset, event.end + offset, request.name, event.busy)
        return clip

    def kept(self, keys: Iterable[str], request: Request) -> dict[str, Entry]:
        """What the cache has under these keys; the stage "cache" if that is anything."""
        start = self.timeline.now()
        found = {key: self.store.get(key) for key in keys} if self.store else {}
        there: dict[str, Entry] = {key: entry for key, entry in found.items() if entry is not None}
        if there:
            self.timeline.add("cache", start, self.timeline.now(), request.name)
        return there

    def keep(self, entries: Mapping[str, Entry]) -> None:
        """Puts entries into the cache."""
        if self.store and entries:
            self.store.put_all(entries)

    def making(self, key: str) -> AbstractContextManager[None]:
        """Held while something is made, so that another process waits for it and does not make it too."""
        return self.store.making(key) if self.store else nullcontext()


def key_of(*parts: Any) -> str:
    """A key for the cache, from all that an entry depends on."""
    return hashlib.sha256(repr((VERSION, *parts)).encode()).hexdigest()
