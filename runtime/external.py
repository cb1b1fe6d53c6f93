"""Relevance scores that the user hands in for the next call (``scorer="external"``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_SCORES: ContextVar[Tensor | None] = ContextVar("segmo_external_scores", default=None)


@contextmanager
def external_scores(scores: Any) -> Iterator[None]:
    """Relevance scores for the prompts that run inside the ``with`` block.

    Args:
        scores: one per frame or one per scene of the video, (F,) or (S,), or (B, F) or (B, S) for a batch; anything
            that ``torch.as_tensor`` takes, floating point. A frame is a temporal patch (two sampled frames for Qwen-VL).
    """
    token = _SCORES.set(torch.as_tensor(scores).detach().to(torch.float32))
    try:
        yield
    finally:
        _SCORES.reset(token)


def current_scores() -> Tensor:
    """The scores of the running block, (0,) if there are none."""
    scores = _SCORES.get()
    return torch.empty(0) if scores is None else scores
