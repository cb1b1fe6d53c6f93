"""Python's collector of cycles, kept from what was there before a compilation: Dynamo makes millions of objects.

Each of its full rounds looks at every object of the process, and torch, transformers and a model are a million of them.
What was there when a compilation began is left out of the rounds until it ends; what the compilation leaves behind is
collected as ever.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._dynamo.callback import callback_handler

WHAT = "torch._dynamo.callback"
VERSIONS = "torch 2.11 to 2.15"


class _Spared:
    """Calls in any thread that may compile, and whether what was there before is left out now."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._calls = 0
        self._left_out = False

    def enter(self) -> None:
        """A call begins."""
        with self._lock:
            self._calls += 1
            if self._begin not in callback_handler.start_callbacks:  # torch._dynamo.reset() forgets them
                callback_handler.register_start_callback(self._begin)
                callback_handler.register_end_callback(self._end)

    def leave(self) -> None:
        """A call ends."""
        with self._lock:
            self._calls -= 1
            if not self._calls:
                self._end()

    def _begin(self, _: Any = None) -> None:
        with self._lock:  # what others compile is not ours to spare, and where the user has a say in it he has it
            if self._calls and not self._left_out and gc.isenabled() and not gc.get_freeze_count():
                gc.freeze()
                self._left_out = True

    def _end(self, _: Any = None) -> None:
        with self._lock:
            if self._left_out:
                gc.unfreeze()
                self._left_out = False


_SPARED = _Spared()


@contextmanager
def collector_spared() -> Iterator[None]:
    """While something is compiled in the block, the collector does not look at what was there before."""
    _SPARED.enter()
    try:
        yield
    finally:
        _SPARED.leave()


def fits() -> str | None:
    """There must be lists of what is called around each compilation."""
    names = ("start_callbacks", "register_start_callback", "register_end_callback")
    if not all(hasattr(callback_handler, name) for name in names):
        return "Dynamo does not say when it begins and ends to compile"
    return None
