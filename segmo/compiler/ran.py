"""Whether a call came to a graph of SegMo's, and its decoder with it.

torch.compile may leave a call alone, or a part of it, and says so nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_GRAPHS: ContextVar[list[bool] | None] = ContextVar("segmo_graphs", default=None)


@contextmanager
def graphs_noted() -> Iterator[list[bool]]:
    """For each graph that runs inside the block, in this thread, what :func:`noting` was told of it."""
    graphs: list[bool] = []
    token = _GRAPHS.set(graphs)
    try:
        yield graphs
    finally:
        _GRAPHS.reset(token)


def noting(run: Callable[..., Any], *, told: bool) -> Callable[..., Any]:
    """A compiled graph that is noted when it runs.

    Args:
        run: the graph.
        told: it holds the decoder's attention, or was complained about: nothing goes on behind the user's back.
    """

    def call(*args: Any) -> Any:
        graphs = _GRAPHS.get()
        if graphs is not None:
            graphs.append(told)
        return run(*args)

    return call
