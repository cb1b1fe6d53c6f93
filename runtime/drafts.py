"""Assisted decoding: its first call holds the prompt and candidates for the answer behind it.

Candidates are no part of the question. So the prompt is prefilled and cut first, as in any other decoding, and the
candidates follow as a further call on the cut cache.

Legend: N prompt tokens, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from segmo.compat.cache_name import NAMES, cache_of
from segmo.compat.generation import candidates

_PER_TOKEN = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids")  # by their last dimension
_VIDEO = ("mm_encoder_outputs", "pixel_values", "pixel_values_videos")


def drafted(inputs: Mapping[str, Any]) -> int:
    """C of a call; 0 where it holds none behind a prompt with video."""
    wanted = inputs.get("logits_to_keep")
    first = any(inputs.get(name) is not None for name in _VIDEO)
    if not first or not isinstance(wanted, int) or wanted < 2 or inputs.get("output_hidden_states"):
        return 0
    count = candidates()
    return count if count == wanted - 1 else 0


def call_in_two(call: Callable[[Mapping[str, Any]], Any], inputs: Mapping[str, Any], count: int) -> Any:
    """The result of one call with ``count`` candidates, made by two: N tokens, then C."""
    prompt, rest = dict(inputs), {name: value for name, value in inputs.items() if name not in _VIDEO}
    for name in _PER_TOKEN:
        if isinstance(inputs.get(name), Tensor):
            prompt[name] = inputs[name][..., :-count]
            if name != "attention_mask":
                rest[name] = inputs[name][..., -count:]
    prompt["logits_to_keep"], rest["logits_to_keep"] = 1, count
    first = call(prompt)
    cache = next(name for name in NAMES if name in first)  # as the model calls it
    second = call({**rest, cache: cache_of(first)})
    second["logits"] = torch.cat([first.logits, second.logits], dim=1)
    return second
