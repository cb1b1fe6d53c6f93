"""Prompts with more positions than the model was trained for: kept tokens keep the places of the whole prompt.

Legend: B batch, N tokens of the call, V of them video.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.compat.cache_name import cache_of
from segmo.families import family_of
from segmo.runtime.host import later


@dataclass(frozen=True)
class Need:
    """Positions that a call needs, of those that there are.

    Attributes:
        needed, limit: positions.
        frames: of its videos, as they are sampled; None where that is not known.
        fits: so many of them have positions beside the text, at the same rate.
        what: needs them, in words.
    """

    needed: int
    limit: int
    frames: int | None = None
    fits: int = 0
    what: str = "this prompt"

    def __str__(self) -> str:
        text = (
            f"{self.what} needs {self.needed:,} positions, and the model is made for {self.limit:,} "
            "(max_position_embeddings of its config). Dropping tokens does not change that: those that are kept keep "
            "their positions. Answers may be nonsense"
        )
        if self.frames is None:
            return f"{text}; show fewer frames"
        if not self.fits:
            return f"{text}; no frame fits beside the text"
        return f"{text}; {self.fits:,} of the {self.frames:,} frames fit (segmo run: --max-frames {self.fits})"


def look_at_length(model: Any, inputs: Mapping[str, Any]) -> Callable[[], None]:
    """What is to be called behind a call of the model, and warns once if that took more positions than the model has.

    So the call does not wait for its device before. A decode step is not looked at.
    """
    ids, limit = inputs.get("input_ids"), position_limit(getattr(model, "config", None))
    if not isinstance(ids, Tensor) or ids.shape[1] == 1 or limit is None:
        return lambda: None
    positions = _positions(inputs)  # as long as the cache is what it was
    last = later(positions.max())

    def warn() -> None:
        if int(last()) >= limit and (need := needed(model, {**inputs, "position_ids": positions})) is not None:
            warnings.warn(str(need), stacklevel=3)

    return warn


def warn_if_too_long(model: Any, inputs: Mapping[str, Any]) -> None:
    """:func:`look_at_length`, and what it gives, at once."""
    look_at_length(model, inputs)()


def needed(model: Any, inputs: Mapping[str, Any]) -> Need | None:
    """What a call needs; None where the model's config names no limit.

    Args:
        model: a transformers Video LLM.
        inputs: of its forward by name: ``input_ids`` (B, N), and ``position_ids`` (..., B or 1, N) where it has M-RoPE.
    """
    config = getattr(model, "config", None)
    limit = position_limit(config)
    if limit is None:
        return None
    ids, positions = inputs["input_ids"], _positions(inputs)
    video = ids == getattr(config, "video_token_id", -1)
    total = int(positions.max()) + 1
    places = video[0].nonzero()[:, 0]
    if total <= limit or not places.numel():
        return Need(total, limit)
    around = int(places[0]) + ids.shape[1] - 1 - int(places[-1])  # text before and behind the videos
    if positions.dim() == 2:
        frames, joined = _frames_by_cells(model, places.numel()), 1
        if frames is None:
            return Need(total, limit)
        step = one = places.numel() / frames
        span = places.numel()
    else:
        inside = positions[:, 0, places]
        starts = torch.cat([inside.new_zeros(1), (inside[0].diff() != 0).nonzero()[:, 0] + 1])
        frames, joined = len(starts), int(getattr(getattr(config, "vision_config", None), "temporal_patch_size", 1))
        first = inside[:, : int(starts[1])] if frames > 1 else inside
        one = int(first.max() - first.min()) + 1  # a frame takes a position for each row or column
        span = int(inside.max() - inside.min()) + 1
        step = float(inside[0, starts[-1]] - inside[0, 0]) / (frames - 1) if frames > 1 else one
    room, last = limit - (total - span), span - (frames - 1) * step
    fits = math.floor((room - last) / step) + 1 if one <= room and around + one <= limit else 0
    return Need(total, limit, frames * joined, min(fits, frames) * joined)


def _positions(inputs: Mapping[str, Any]) -> Tensor:
    ids, positions, cache = inputs["input_ids"], inputs.get("position_ids"), cache_of(inputs)
    if not isinstance(positions, Tensor):
        start = int(cache.get_seq_length()) if cache is not None else 0
        return torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    return positions[-3:] if positions.dim() == 3 else positions  # M-RoPE: a row of text positions may stand in front


def position_limit(config: Any) -> int | None:
    """Positions that a model is made for; where its rotary embedding was stretched (YaRN and the like), for then."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if limit is None or not isinstance(rope, Mapping):
        return limit
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(limit, int(original * factor)) if original and factor else limit


def _frames_by_cells(model: Any, tokens: int) -> int | None:
    family = family_of(model)
    cells = family.cells_per_frame(model.config) if family is not None and family.cells_per_frame else 0
    return tokens // cells if cells else None
