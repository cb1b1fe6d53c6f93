"""Cuts that the running call of a model makes, and what they leave in its KV cache.

A rewritten prefill hands out which tokens it kept. The cache that it filled is known to the call around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        seen: N, tokens of the prompt.
        index_BK: positions of the kept tokens, (B, K) int64.
        spread: each rank holds the keys of its own tokens only.
    """

    seen: int
    index_BK: Tensor
    spread: bool = False


_RUNNING: ContextVar[list[Cut] | None] = ContextVar("segmo_cuts", default=None)


def tell(cut: Cut) -> None:
    """A rewritten prefill ran."""
    cuts = _RUNNING.get()
    if cuts is not None:
        cuts.append(cut)


def call_and_mark(run: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """``run(**inputs)``, after which the cache it filled knows what was cut (see :mod:`segmo.runtime.cache`).

    Args:
        run: a compiled model.
        inputs: its arguments by name.

    Raises:
        CacheError: the cache is of a kind that cannot hold a cut.
    """
    cuts: list[Cut] = []
    token = _RUNNING.set(cuts)
    try:
        result = run(**inputs)
    finally:
        _RUNNING.reset(token)
    for cut in cuts:
        from segmo.runtime.cache import find_cache, mark_cut  # imports transformers

        cache = find_cache(inputs, result)
        if cache is not None:
            mark_cut(cache, cut.seen, cut.index_BK, spread=cut.spread)
    return result
