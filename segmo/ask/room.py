"""Frames of a video for which the model has positions beside the question.

A run samples frames by itself, so where the prompt would be too long for the model it samples fewer, and says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.ask.checkpoint import Checkpoint
from segmo.ask.encode import process
from segmo.calls.length import Need, needed
from segmo.video import Clip

SHORTER = 0.95  # fewer frames make a prompt shorter if it then needs at most this part of its positions
Numbers = NDArray[np.int64]


def is_too_long(loaded: Checkpoint, prompt: Mapping[str, Any]) -> Need | None:
    """What a prompt needs, where that is more than the model has; None where it fits.

    Args:
        loaded: the model.
        prompt: ``input_ids`` and what goes with them; features and pixels are not looked at.
    """
    inputs = {"input_ids": prompt["input_ids"], "position_ids": _positions(loaded.model, prompt)}
    need = needed(loaded.model, inputs)
    return need if need is not None and need.needed > need.limit else None


def fitted(
    loaded: Checkpoint, clip: Clip, numbers: Numbers, question: str, fewer: Callable[[int], Numbers] | None = None
) -> tuple[Numbers, str]:
    """The frames of a clip to show, as many as there are positions for.

    Where positions count seconds, as in Qwen2.5-VL, fewer frames need as many: then the frames stay as they are, and
    the call of the model warns.

    Args:
        loaded: the model.
        clip: all sampled frames; no picture is looked at.
        numbers: of the frames to show, ascending.
        question: that is asked.
        fewer: picks at most so many of them; spread evenly when None.

    Returns:
        Their numbers, and what is to be said; nothing where all fit.
    """

    def need_of(shown: Numbers) -> Need | None:
        return is_too_long(loaded, process(loaded, clip.only(shown), question, pixels=False))

    def spread(count: int) -> Numbers:
        return numbers[np.linspace(0, len(numbers) - 1, count).round().astype(np.int64)]

    shown, first = numbers, need_of(numbers)
    if first is None:
        return numbers, ""
    need: Need | None = first
    while need is not None:
        count = min(need.fits, len(shown) - 1)
        shown = (fewer or spread)(count) if count > 0 else shown[:0]
        shorter = need_of(shown) if len(shown) else need
        if shorter is not None and shorter.needed > SHORTER * need.needed:
            return numbers, ""
        need = shorter
    return shown, (
        f"{len(numbers):,} frames need {first.needed:,} positions, and the model is made for {first.limit:,} "
        f"(max_position_embeddings of its config); {len(shown):,} of the {len(numbers):,} frames fit and are shown"
    )


def _positions(model: Any, prompt: Mapping[str, Any]) -> Any:
    """Position ids of M-RoPE; None for other models. Leaves the model as it is, which may be answering just now."""
    find = getattr(model.base_model, "get_rope_index", None)
    if find is None:
        return None
    return find(**{name: prompt[name] for name in inspect.signature(find).parameters if name in prompt})[0]
