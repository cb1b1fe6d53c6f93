"""What a memory holds, and what an answer looked at, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from segmo.memory.choose import find_starts
from segmo.memory.seen import Seen
from segmo.memory.watcher import Watcher


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


def glances(watcher: Watcher, starts: Tensor, seen: Seen) -> tuple[Glance, ...]:
    """The scenes that a question saw something of, in order; ``starts`` has the first frame of each."""
    seconds = [*watcher.seconds, watcher.seconds[-1] + watcher.each]
    ends = [*starts.tolist()[1:], len(seconds) - 1]
    end_of = dict(zip(starts.tolist(), ends, strict=True))
    return tuple(Glance(seconds[start], seconds[end_of[start]], count) for start, count in seen.scenes.items() if count)


def counts(watcher: Watcher) -> dict[str, Any]:
    """Counts and bytes of what was watched, see :meth:`segmo.Memory.summary`."""
    held = watcher.held()
    size = sum(block.bytes for block in held)
    seconds = watcher.duration
    return {
        "frames": len(watcher.similarity),
        "seconds": seconds,
        "segments": len(watcher.borders),
        "scenes": len(find_starts(watcher.similarity)),
        "tokens": watcher.length,
        "video_tokens": watcher.video_tokens,
        "held_tokens": sum(map(len, held)),
        "held_video_tokens": sum(block.video for block in held),
        "bytes": size,
        "bytes_per_second": size / seconds,
    }
