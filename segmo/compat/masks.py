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

from segmo.compat.versions import installed

WHAT = "transformers.masking_utils._preprocess_mask_arguments"
VERSIONS = "transformers 5.18 to 5.24"

_NEEDED = ("attention_mask", "past_key_values", "layer_idx")


def ask_cut_caches() -> bool:
    """From now on, masks are made for the keys that a cut cache holds. Returns whether there was a place to ask."""
    original = _original()
    if original is None or fits() is not None:
        return False
    if getattr(original, "segmo", False):
        return True
    names = list(inspect.signature(original).parameters)

    @functools.wraps(original)
    def preprocess(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        mask, layers = given["attention_mask"], getattr(given["past_key_values"], "layers", None)
        layer = layers[given["layer_idx"] or 0] if mask is not None and layers else None
        if hasattr(layer, "held_columns"):  # segmo.runtime.cache.CutLayer
            given["attention_mask"] = layer.held_columns(mask)
        return original(**given)

    preprocess.segmo = True  # type: ignore[attr-defined]  # asked already
    from transformers import masking_utils

    masking_utils._preprocess_mask_arguments = preprocess
    return True


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
    missing = [name for name in _NEEDED if name not in inspect.signature(found).parameters]
    return f"{found.__name__} has no {', '.join(missing)}" if missing else None
