"""Where transformers makes masks: a cache that was cut is asked which columns of a mask belong to the keys it holds.

``create_causal_mask`` and its relatives all go through one function, which knows the mask that was given, the cache
and the layer. It is the one place that every caller passes: a compiled model, the model as it was, another backend.
For caches that were not cut nothing changes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segmo.compat.cache_name import NAMES
from segmo.compat.versions import installed
from segmo.errors import CacheError

WHAT = "transformers.masking_utils._preprocess_mask_arguments"
VERSIONS = "transformers 5.18 to 5.24"

_NEEDED = ("config", "attention_mask", "layer_idx")


def ask_cut_caches() -> bool:
    """From now on, masks are made for the keys that a cut cache holds. Returns whether there was a place to ask."""
    original = _original()
    if original is None or fits() is not None:
        return False
    if getattr(original, "segmo", False):
        return True
    names = list(inspect.signature(original).parameters)
    cache = next(name for name in NAMES if name in names)
    embeds = next(name for name in names if name.endswith("embeds"))

    @functools.wraps(original)
    def preprocess(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        layers = getattr(given[cache], "layers", None)
        layer = layers[given["layer_idx"] or 0] if layers else None
        if getattr(layer, "kept_BK", None) is not None:  # segmo.runtime.cache.CutLayer and its like
            given["attention_mask"] = _mask(layer, given["attention_mask"], given["config"], given[embeds])
        return original(**given)

    preprocess.segmo = True  # type: ignore[attr-defined]  # asked already
    from transformers import masking_utils

    masking_utils._preprocess_mask_arguments = preprocess
    return True


def _mask(layer: Any, mask: Tensor | None, config: Any, embeds: Tensor) -> Tensor | None:
    """The mask to hand on in place of the one that was handed in; a 4-D one is used as it is.

    A model whose parts each make a mask hands on one that was made here, which has the held columns already.
    """
    if mask is not None and mask.dim() == 4:
        if mask.shape[-1] == layer.keys.shape[-2] + embeds.shape[1]:
            return mask
        held: Tensor = layer.held_columns(mask)
        return held
    if hasattr(layer, "window_mask"):
        seen: Tensor = layer.window_mask(mask if mask is None else mask.to(embeds.device, torch.bool), embeds.shape[1])
        if config._attn_implementation == "sdpa":
            return seen
        if config._attn_implementation == "eager":
            return torch.zeros_like(seen, dtype=embeds.dtype).masked_fill(~seen, torch.finfo(embeds.dtype).min)
        raise CacheError(
            f"attn_implementation={config._attn_implementation!r} cannot be told which keys of a sliding window were "
            'dropped; load the model with "sdpa" to go on from this cache'
        )
    # Of a 2-D one, transformers takes the columns from the layer's offset on.
    return None if mask is None else torch.nn.functional.pad(layer.held_columns(mask), (layer.dropped, 0))


def _original() -> Callable[..., Any] | None:
    try:
        from transformers import masking_utils
    except ImportError:
        return None
    return getattr(masking_utils, "_preprocess_mask_arguments", None)


def fits() -> str | None:
    """Where there is a transformers, the function has to be there, and to name the mask, the cache and the layer."""
    found = _original()
    if found is None:
        return f"{WHAT} is not there" if installed("transformers") else None
    names = inspect.signature(found).parameters
    missing = [name for name in _NEEDED if name not in names]
    if not any(name in names for name in NAMES):
        missing.append(" or ".join(NAMES))
    if not any(name.endswith("embeds") for name in names):
        missing.append("inputs_embeds")
    return f"{found.__name__} has no {', '.join(missing)}" if missing else None
