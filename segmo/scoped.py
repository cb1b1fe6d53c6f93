"""What a ``with`` block says of the calls inside of it, in its own thread and in those that it hands work to.

A context variable alone is not enough: a thread or an executor starts without the context of whoever started it, so the
usual ``Thread(target=model.generate)`` of a streamer would know nothing of the block around it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class _Block(Generic[_Value]):
    """One block that was entered, and the one around it."""

    value: _Value
    outer: _Block[_Value] | None


class Scoped(Generic[_Value]):
    """The blocks of one kind.

    A call belongs to the blocks of its own context: a thread's, or a task's of asyncio. Where that has none, it belongs
    to all blocks that are open in the process.
    """

    def __init__(self, name: str) -> None:
        self._own: ContextVar[_Block[_Value] | None] = ContextVar(name, default=None)
        self._open: list[_Block[_Value]] = []
        self._lock = threading.Lock()

    @contextmanager
    def block(self, value: _Value) -> Iterator[None]:
        """One block."""
        block = _Block(value, self._own.get())
        token = self._own.set(block)
        with self._lock:
            self._open.append(block)
        try:
            yield
        finally:
            with self._lock:
                self._open.remove(block)
            self._own.reset(token)

    def values(self) -> list[_Value]:
        """Of all blocks that the running call belongs to, the outermost first."""
        own = self._own.get()
        if own is None:
            with self._lock:
                return [block.value for block in self._open]
        found = []
        while own is not None:
            found.append(own.value)
            own = own.outer
        return found[::-1]

    def innermost(self) -> list[_Value]:
        """Of the innermost block that the running call belongs to: one, none, or several where that is not known.

        Several are open in other threads, and the call's own has none: it may belong to any of them.
        """
        own = self._own.get()
        if own is not None:
            return [own.value]
        with self._lock:
            around = {id(block.outer) for block in self._open}
            return [block.value for block in self._open if id(block) not in around]
