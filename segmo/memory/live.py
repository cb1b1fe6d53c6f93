"""``segmo.live``: a camera that is watched as it goes, and asked now and then.

Frames are taken from the camera in a thread of their own. What comes while the model is still busy with earlier frames
waits in a short queue; when that is full, frames are skipped, and every answer says how many.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.errors import OptionError
from segmo.memory.memory import Memory, watch
from segmo.memory.prompt import FPS

LIMIT = 1 << 30  # bytes that a live memory takes, unless told otherwise
LONGEST = 64  # frames after which a segment of a live video ends without a cut
CHUNK = 8  # frames that are watched at a time
WAITING = 64  # frames that wait, at most


@dataclass(frozen=True)
class LiveAnswer:
    """An answer about a video that goes on.

    Attributes:
        text: the answer.
        question: what was asked.
        seconds: of video that had come from the camera.
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


class Camera:
    """Takes frames from their source in a thread, as fast as they come.

    Attributes:
        came: frames that came.
        skipped: those for which there was no room.
    """

    def __init__(self, source: Iterable[NDArray[np.uint8]], waiting: int, wait: bool) -> None:
        self.came = self.skipped = 0
        self._queue: queue.Queue[Any] = queue.Queue(waiting)
        self._wait, self._source = wait, source
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="segmo-camera", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        end: Any = None
        try:
            for frame in self._source:
                if self._stop.is_set():
                    return
                self.came += 1
                self._put(frame)
        except Exception as error:  # noqa: BLE001  # raised where the frames are used
            end = error
        while not self._stop.is_set():
            try:
                self._queue.put(_End(end), timeout=0.1)
                return
            except queue.Full:
                continue

    def _put(self, frame: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(frame, block=self._wait, timeout=0.1)
                return
            except queue.Full:
                if not self._wait:
                    self.skipped += 1
                    return

    def take(self, count: int) -> list[NDArray[np.uint8]]:
        """The next frames; fewer at the end."""
        found: list[NDArray[np.uint8]] = []
        while len(found) < count:
            item = self._queue.get()
            if isinstance(item, _End):
                self._queue.put(item)
                if item.error is not None and not found:
                    raise item.error
                break
            found.append(item)
        return found

    def stop(self) -> None:
        """Lets the source go."""
        self._stop.set()


@dataclass(frozen=True)
class _End:
    error: Exception | None


def live(
    model: Any,
    processor: Any,
    camera: Iterable[NDArray[np.uint8]],
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
        camera: frames (height, width, 3) uint8, one after the other; the iteration ends when it does.
        question: what is asked, or a function of the seconds of video that gives it, or None for no question now.
        every: seconds of video from one question to the next, and once at the end.
        fps: frames per second that the camera gives.
        chunk: frames that are watched at a time; a question waits for no more than these.
        waiting: frames that wait while the model is busy.
        skip: when there is no room for a frame, skip it (a camera does not wait); otherwise the source waits.
        generation: arguments of ``generate``.
        limit, longest: as for :func:`watch`, with defaults that keep time and memory bounded for ever.
        **options: as for :func:`watch`.

    Raises:
        OptionError: ``every``, ``chunk`` or ``waiting`` is out of range.
    """
    if every <= 0 or chunk < 1 or waiting < chunk:
        raise OptionError(f"every={every}, chunk={chunk}, waiting={waiting}: 0 < every and 1 <= chunk <= waiting")
    source = Camera(camera, waiting, not skip)
    memory: Memory | None = None
    watched, due, fresh = 0, every, False
    try:
        while frames := source.take(chunk):
            block = np.stack(frames)
            if memory is None:
                memory = watch(model, processor, block, fps=fps, limit=limit, longest=longest, **options)
            else:
                memory.extend(block)
            watched += len(frames)
            seconds, fresh = (watched + source.skipped) / fps, True
            if seconds >= due:
                due, fresh = seconds + every, False
                yield from _answer(memory, question, seconds, watched, source, generation or {})
        if memory is not None and fresh:
            seconds = (watched + source.skipped) / fps
            yield from _answer(memory, question, seconds, watched, source, generation or {})
    finally:
        source.stop()


def _answer(
    memory: Memory, question: Any, seconds: float, watched: int, source: Camera, generation: dict[str, Any]
) -> Iterator[LiveAnswer]:
    text = question(seconds) if callable(question) else question
    if text is not None:
        memory.forget()  # what was said would stand behind frames that came later
        answer = memory.ask(text, **generation)
        yield LiveAnswer(answer, text, seconds, watched, source.skipped, memory)
