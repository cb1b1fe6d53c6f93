"""Frames of a source that does not wait: they are taken in a thread, and skipped while there is no room for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmo.errors import PromptError


@dataclass(frozen=True)
class Chunk:
    """Successive frames of a source.

    Attributes:
        frames: (T, height, width, 3) uint8; none at the end.
        first: number of the first of them among all frames that came.
        error: that ended the source.
    """

    frames: NDArray[np.uint8]
    first: int
    error: Exception | None = None


class Camera:
    """Takes frames from their source in a thread, as fast as they come.

    Args:
        source: of frames (height, width, 3) uint8.
        chunk: frames that are handed on at a time; fewer at the end. Frames are skipped by chunks, too.
        waiting: frames that wait, at most.
        wait: the source waits where there is no room, and nothing is skipped.

    Attributes:
        skipped: frames for which there was no room.
    """

    def __init__(self, source: Iterable[NDArray[np.uint8]], chunk: int, waiting: int, wait: bool) -> None:
        self.skipped = 0
        self._chunk, self._wait, self._source = chunk, wait, source
        self._queue: queue.Queue[Chunk] = queue.Queue(waiting // chunk)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="segmo-camera", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        held: list[NDArray[np.uint8]] = []
        came, error = 0, None
        try:
            for frame in self._source:
                if self._stop.is_set():
                    return
                came += 1
                held.append(_copied(frame, came))  # many cameras fill the same memory with every frame
                if held[-1].shape != held[0].shape:
                    raise PromptError(
                        f"frame {came} of the camera has the shape {held[-1].shape}, the one before it "
                        f"{held[0].shape}; a memory is of one video"
                    )
                if len(held) == self._chunk:
                    self._put(Chunk(np.stack(held), came - len(held)), self._wait)
                    held = []
            if held:
                self._put(Chunk(np.stack(held), came - len(held)), True)
        except Exception as failure:  # noqa: BLE001  # raised where the frames are used
            error = failure
        self._put(Chunk(np.empty((0, 0, 0, 3), np.uint8), came, error), True)

    def _put(self, chunk: Chunk, wait: bool) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(chunk, block=wait, timeout=0.1)
                return
            except queue.Full:
                if not wait:
                    self.skipped += len(chunk.frames)
                    return

    def take(self) -> Chunk:
        """The next frames, or the end.

        Raises:
            Exception: that of the source, once all that came before it was taken.
        """
        chunk = self._queue.get()
        if chunk.error is not None:
            raise chunk.error
        return chunk

    def stop(self) -> None:
        """Lets the source go."""
        self._stop.set()


def _copied(frame: object, number: int) -> NDArray[np.uint8]:
    """A copy of a frame.

    Raises:
        PromptError: it is none; what else is wrong with it shows where it is watched.
    """
    try:
        copied = np.array(frame)
    except (TypeError, ValueError):
        copied = np.empty(0)
    if copied.ndim != 3:
        raise PromptError(
            f"frame {number} of the camera is a {type(frame).__name__} of shape {copied.shape}; hand in the pictures "
            "alone, (height, width, 3) uint8 (cv2's read() gives a pair, of which the second one is the picture)"
        )
    return copied
