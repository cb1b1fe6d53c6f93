"""Python's collector of cycles, kept from full rounds while something is compiled: Dynamo makes millions of objects.

A full round looks at every object of the process: at those of torch, transformers and a model, and at all that the
compilation has made so far, which is nearly all still in use. Rounds over what is young go on, and a full one follows
behind every ninth compilation, at the latest: a program may do little but compile, one model after another, and a model
that was dropped goes in a full round.
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

YOUNG = 20_000  # objects that are made between two rounds; Python's own is 700 to 2,000 by version
SELDOM = 100  # rounds over younger objects before a full one, ten by default: more than a compilation makes
IN_A_ROW = 8  # compilations without a full round behind them: four models, of a prefill and a step each


class _Spared:
    """Calls in any thread that may compile, and the collector's thresholds: as they were, and as they are set here."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._calls = 0
        self._before: tuple[int, int, int] | None = None
        self._ours = (0, 0, 0)
        self._full, self._since = 0, 0  # full rounds before this compilation, and compilations since the last one

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
            due = self._since > IN_A_ROW and gc.isenabled()
            if due:
                self._since = 0
        if due:  # under no lock, which what is finalized may want
            gc.collect()

    def _begin(self, _: Any = None) -> None:
        with self._lock:
            young, middle, full = before = gc.get_threshold()
            # What others compile is not ours to spare; where the user has switched the collector off, it stays so.
            if self._calls and self._before is None and gc.isenabled() and young:
                gc.set_threshold(max(young, YOUNG), middle, max(full, SELDOM))
                self._before, self._ours = before, gc.get_threshold()  # Python 3.14 knows no third one
                rounds = gc.get_stats()[2]["collections"]
                self._since = self._since + 1 if rounds == self._full else 1
                self._full = rounds

    def _end(self, _: Any = None) -> None:
        with self._lock:
            if self._before is not None and gc.get_threshold() == self._ours:  # and nobody has set others since
                if not gc.get_freeze_count():
                    gc.freeze()  # all are old objects now, and rounds are counted from 0: none is due at once
                    gc.unfreeze()
                gc.set_threshold(*self._before)
            self._before = None


_SPARED = _Spared()


@contextmanager
def collector_spared() -> Iterator[None]:
    """While something is compiled in the block, the collector makes no full rounds."""
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
