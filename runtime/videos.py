"""How many frames each video of the running call has, where that is known before the graph.

The graph holds features and positions. What says how many frames they are of stands in the call's other arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_FRAMES: ContextVar[tuple[int, ...] | None] = ContextVar("segmo_frames", default=None)


@contextmanager
def frames_known(frames: Sequence[int] | None) -> Iterator[None]:
    """Inside the block, the videos of the batch have so many frames, in order of the prompt; None if not known."""
    token = _FRAMES.set(None if frames is None else tuple(frames))
    try:
        yield
    finally:
        _FRAMES.reset(token)


def current_frames() -> tuple[int, ...] | None:
    """Frames of each video of the running call, None where they are not known."""
    return _FRAMES.get()
