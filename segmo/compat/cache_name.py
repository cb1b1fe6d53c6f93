"""What a model's forward calls the KV cache: ``past_key_values``, and ``cache`` from transformers 5.24 on.

From then on the old name is taken too, with a warning, and renamed by the model itself; whoever reads a call's
arguments in front of it must know both.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

WHAT = "the name of the KV cache among a model's arguments"
VERSIONS = "transformers 5.18 to 5.24"
NAMES = ("past_key_values", "cache")


def cache_name(model: Any) -> str:
    """The name under which a model takes its cache."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in parameters), NAMES[0])


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache among a call's arguments, or in its result, whatever it is called there; None without."""
    return next((inputs[name] for name in NAMES if inputs.get(name) is not None), None)


def with_cache_as(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments with the cache under this name, as the model itself would rename it."""
    if inputs.get(name) is not None or cache_of(inputs) is None:
        return inputs
    return {**{key: value for key, value in inputs.items() if key not in NAMES}, name: cache_of(inputs)}


def fits() -> str | None:
    """None if transformers' models take a cache under one of the names, else what is different."""
    from transformers import Qwen2VLForConditionalGeneration

    parameters = inspect.signature(Qwen2VLForConditionalGeneration.forward).parameters
    return None if any(name in parameters for name in NAMES) else f"none of {', '.join(NAMES)}"
