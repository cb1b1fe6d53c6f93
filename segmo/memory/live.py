"""``segmo.live``: a camera that is watched as it goes, and asked now and then.

What comes while the model is still busy with earlier frames waits in a short queue; when that is full, frames are
skipped, and every answer says how many. Over ranks the first one has the camera, and tells the others what to do.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from segmo.errors import OptionError, RankError
from segmo.memory.camera import Camera
from segmo.memory.intake import check_fps
from segmo.memory.known import known_family
from segmo.memory.memory import Memory
from segmo.memory.prompt import FPS
from segmo.memory.watch import watch
from segmo.runtime.distributed.ranks import Ranks

LIMIT = 1 << 30  # bytes that a live memory takes, unless told otherwise
LONGEST = 64  # frames after which a segment of a live video ends without a cut
CHUNK = 8  # frames that are watched at a time
WAITING = 64  # frames that wait, at most

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class LiveAnswer:
    """An answer about a video that goes on.

    Attributes:
        text: the answer.
        question: what was asked.
        seconds: of video up to the newest frame that was watched.
        frames: that were watched.
        skipped: frames that came too fast, since the start.
        memory: what was asked; it may be asked more, in between.
    """

    text: str
    question: str
    seconds: float
    frames: int
    skipped: int
    memory: Memory


def live(
    model: Any,
    processor: Any,
    camera: Iterable[NDArray[np.uint8]] | None,
    *,
    question: str | Callable[[float], str | None],
    every: float = 10.0,
    fps: float = FPS,
    chunk: int = CHUNK,
    waiting: int = WAITING,
    skip: bool = True,
    generation: dict[str, Any] | None = None,
    limit: int | None = LIMIT,
    longest: int | None = LONGEST,
    **options: Any,
) -> Iterator[LiveAnswer]:
    """Watches frames as they come, and asks about all that was seen so far, again and again.

    Args:
        model, processor: as for :func:`watch`.
        camera: frames (height, width, 3) uint8, one after the other; the iteration ends when it does. With ``ranks``
            that of the first rank is watched by all, and the others need none.
        question: what is asked, or a function of the seconds of video that gives it, or None for no question now. The
            first rank's counts.
        every: seconds of video from one question to the next, and once at the end.
        fps: frames per second that the camera gives.
        chunk: frames that are watched at a time; a question waits for no more than these.
        waiting: frames that wait while the model is busy.
        skip: when there is no room for frames, skip a chunk (a camera does not wait); otherwise the source waits.
        generation: arguments of ``generate``.
        limit, longest: as for :func:`watch`, with defaults that keep time and memory bounded for ever.
        **options: as for :func:`watch`.

    Raises:
        OptionError: ``every``, ``chunk`` or ``waiting`` is out of range, there is no camera, or the model is of a
            family that a memory does not know.
        RankError: the camera or the question of the first rank failed.
    """
    known_family(model)
    check_fps(fps)
    _check_pace(every, chunk, waiting)
    crew = _Crew(Ranks.asked(options.get("ranks")), model.device)
    source = None
    if crew.leads:
        if not isinstance(camera, Iterable) or isinstance(camera, (str, bytes)):
            raise OptionError(
                f"there is no camera, but a {type(camera).__name__}: hand in frames (height, width, 3) uint8, one "
                "after the other; a file is watched with segmo.watch"
            )
        source = Camera(camera, chunk, waiting, not skip)
    memory: Memory | None = None
    watched, next_frame, due, fresh = 0, 0, every, False

    def asked(seconds: float) -> tuple[str | None, int]:
        return question(seconds) if callable(question) else question, source.skipped if source else 0

    def answer(seconds: float) -> Iterator[LiveAnswer]:
        assert memory is not None
        text, skipped = crew.told(lambda: asked(seconds), "question")
        if text is not None:
            memory.forget()  # what was said would stand behind frames that came later
            yield LiveAnswer(memory.ask(text, **generation or {}), text, seconds, watched, skipped, memory)

    try:
        while True:
            got = crew.told(lambda: source.take() if source else None, "frame")
            if got is None or not len(got.frames):
                break
            if memory is None:
                memory = watch(model, processor, got.frames, fps=fps, limit=limit, longest=longest, **options)
            else:
                memory.extend(got.frames, skipped=got.first - next_frame)
            watched += len(got.frames)
            next_frame = got.first + len(got.frames)
            fresh = True
            if next_frame / fps >= due:
                due, fresh = next_frame / fps + every, False
                yield from answer(next_frame / fps)
        if fresh:
            yield from answer(next_frame / fps)
    finally:
        if source is not None:
            source.stop()


def _check_pace(every: object, chunk: object, waiting: object) -> None:
    counts = [count for count in (chunk, waiting) if isinstance(count, int) and not isinstance(count, bool)]
    often = isinstance(every, (int, float)) and every > 0
    if not often or len(counts) < 2 or not 1 <= counts[0] <= counts[1]:
        raise OptionError(
            f"every={every!r}, chunk={chunk!r}, waiting={waiting!r}: 0 < every, and 1 <= chunk <= waiting frames"
        )


@dataclass(frozen=True)
class _Crew:
    """Ranks of which the first one leads; or a process alone."""

    ranks: Ranks
    device: torch.device

    @property
    def leads(self) -> bool:
        """This is the first one."""
        return self.ranks.rank == 0

    def told(self, act: Callable[[], _Result], what: str) -> _Result:
        """What the first rank finds, on every rank.

        Raises:
            RankError: the first one failed; there, its own error is raised.
        """
        if self.ranks.world == 1:
            return act()
        found: Any = None
        failure: Exception | None = None
        if self.leads:
            try:
                found = act()
            except Exception as error:  # noqa: BLE001  # raised again once the others know
                failure = error
        found, reason = self._sent((found, None if failure is None else repr(failure)), what)
        if failure is not None:
            raise failure
        if reason is not None:
            raise RankError(f"rank 0 has no {what} for the others: {reason}")
        result: _Result = found
        return result

    def _sent(self, value: Any, what: str) -> Any:
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self.device)
        size = int(self.ranks.share(torch.tensor([len(data)], device=self.device), 0, f"size of {what}"))
        if not self.leads:
            data = torch.empty(size, dtype=torch.uint8, device=self.device)
        return pickle.loads(self.ranks.share(data, 0, what).cpu().numpy().tobytes())
