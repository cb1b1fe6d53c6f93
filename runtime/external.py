"""Relevance scores that the user hands in for the next call (``scorer="external"``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.scoped import Scoped

_SCORES: Scoped[Tensor] = Scoped("segmo_external_scores")


@contextmanager
def external_scores(scores: Any) -> Iterator[None]:
    """Relevance scores for the prompts that run inside the ``with`` block, in its thread or in those that it starts.

    Args:
        scores: one per frame or one per scene of the video, (F,) or (S,), or (B, F) or (B, S) for a batch; anything
            that ``torch.as_tensor`` takes. A frame is a temporal patch (two sampled frames for Qwen-VL).

    Raises:
        PromptError: they are no numbers, or rows of different lengths.
    """
    with _SCORES.block(_as_scores(scores)):
        yield


def _as_scores(scores: Any) -> Tensor:
    try:
        found = torch.as_tensor(scores)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(
            f"external scores are numbers, one per frame or one per scene, in rows of one length; got a "
            f"{type(scores).__name__} ({error})"
        ) from error
    if found.is_complex():
        raise PromptError("external scores are real numbers, got complex ones")
    return found.detach().to(torch.float32)


def warn_of_scores(scorer: str) -> None:
    """Says that nobody reads the scores of the running block, where that is so."""
    if scorer != "external" and _SCORES.innermost():
        warnings.warn(
            f'segmo.external_scores is not read: the model was compiled with scorer="{scorer}"; compile it with '
            'scorer="external"',
            stacklevel=2,
        )


def current_scores() -> Tensor:
    """The scores of the running block, (0,) if there are none.

    Raises:
        PromptError: the call runs in a thread without a block, and blocks of several threads are open.
    """
    scores = _SCORES.innermost()
    if len(scores) > 1:
        raise PromptError(
            f"{len(scores)} blocks of segmo.external_scores are open in other threads, and this one has none: it is "
            "not known whose scores are meant. Open the block in the thread that calls the model"
        )
    return scores[0] if scores else torch.empty(0, dtype=torch.float32)
