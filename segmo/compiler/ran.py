"""Whether a call came to a graph of SegMo's: torch.compile may leave a call alone, and says so nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_GRAPHS: ContextVar[list[Callable[..., Any]] | None] = ContextVar("segmo_graphs", default=None)


@contextmanager
def graphs_noted() -> Iterator[list[Callable[..., Any]]]:
    """The graphs that run inside the block, in this thread."""
    graphs: list[Callable[..., Any]] = []
    token = _GRAPHS.set(graphs)
    try:
        yield graphs
    finally:
        _GRAPHS.reset(token)


def noting(run: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled graph that is noted when it runs."""

    def call(*args: Any) -> Any:
        graphs = _GRAPHS.get()
        if graphs is not None:
            graphs.append(run)
        return run(*args)

    return call
