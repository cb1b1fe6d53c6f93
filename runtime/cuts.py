"""Cuts that the running call of a model makes, and what they leave in its KV cache.

A rewritten prefill hands out which tokens it kept. The cache that it filled is known to the call around it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segmo.runtime.drafts import call_in_two, drafted

if TYPE_CHECKING:
    from segmo.runtime.distributed.schedule import RankSchedule


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        seen: N, tokens of the prompt.
        index_BK: positions of the kept tokens, (B, K) int64.
        spread: where each rank holds the keys of its own tokens only: which ones.
    """

    seen: int
    index_BK: Tensor
    spread: RankSchedule | None = None


_RUNNING: ContextVar[list[Cut] | None] = ContextVar("segmo_cuts", default=None)


def tell(cut: Cut) -> None:
    """A rewritten prefill ran. Where nobody stands around the call to tell its cache, that is said."""
    cuts = _RUNNING.get()
    if cuts is None:
        warnings.warn(_UNTOLD, stacklevel=2)
    else:
        cuts.append(cut)


_NO_LABEL = -100  # PyTorch's ignore_index

_UNTOLD = (
    "SegMo dropped tokens of a prompt inside a function that was compiled around the model, where it cannot tell the "
    "KV cache: do not use that cache for a later turn, or compile the model itself"
)


def call_and_mark(run: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """``run(**inputs)``, after which the cache it filled knows what was cut (see :mod:`segmo.runtime.cache`).

    Args:
        run: a compiled model.
        inputs: its arguments by name.

    Raises:
        CacheError: the cache is of a kind that cannot hold a cut.
    """
    count = drafted(inputs)
    if count:
        return call_in_two(lambda part: _call_and_mark(run, part), inputs, count)
    return _call_and_mark(run, inputs)


def _call_and_mark(run: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    cuts: list[Cut] = []
    token = _RUNNING.set(cuts)
    try:
        result = run(**inputs)
    finally:
        _RUNNING.reset(token)
    if cuts:
        _look_at_labels(inputs.get("labels"), cuts)
        from segmo.runtime.cache import find_cache, mark_cut  # imports transformers

        cache = find_cache(inputs, result)
        if cache is not None:
            for cut in cuts:
                mark_cut(cache, cut.seen, cut.index_BK, spread=cut.spread)
    return result


def _look_at_labels(labels: Any, cuts: list[Cut]) -> None:
    """The model's loss is over the tokens that are kept, which is said where labels stand at others."""
    for cut in cuts:
        if not isinstance(labels, Tensor) or labels.shape != (len(cut.index_BK), cut.seen):
            continue
        gone_BN = torch.ones_like(labels, dtype=torch.bool).scatter_(1, cut.index_BK.to(labels.device), False)
        count = int((gone_BN & (labels != _NO_LABEL)).sum())
        if count:
            warnings.warn(
                f"labels stand at {count} tokens that SegMo dropped, and the loss is over those that it kept: set them "
                f"to {_NO_LABEL} at the video's placeholders, which are no text, or keep=1 keeps all",
                stacklevel=2,
            )
