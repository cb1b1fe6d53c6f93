"""The arguments of a call, as a prefill graph wants them: by name, with pixels encoded and positions computed."""

from __future__ import annotations

import inspect
from typing import Any

from segmo.compat.arguments import require_parameters, with_arguments

_PIXELS = {"video": "pixel_values_videos", "image": "pixel_values"}


def by_name(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name.

    Raises:
        TypeError: one was given twice.
    """
    if not args:
        return kwargs
    given = inspect.signature(model.forward).bind_partial(*args).arguments
    twice = given.keys() & kwargs.keys()
    if twice:
        raise TypeError(f"{type(model).__name__}: {', '.join(sorted(twice))} given by place and by name")
    return {**given, **kwargs}


def encoded(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a direct call with pixels encoded and M-RoPE positions computed; others as they are.

    ``generate`` does the same before it calls the model. Inside of the graph, both would break it.
    """
    pixels = {kind: name for kind, name in _PIXELS.items() if inputs.get(name) is not None}
    if not pixels or inputs.get("mm_encoder_outputs") is not None:
        return inputs
    base = model.base_model
    added: dict[str, Any] = {"mm_encoder_outputs": {}}
    require_parameters(model, *added)
    if hasattr(base, "compute_3d_position_ids") and inputs.get("position_ids") is None:
        wanted = inspect.signature(base.compute_3d_position_ids).parameters
        known = {name: inputs.get(name) for name in wanted if name != "kwargs"}
        if known.get("inputs_embeds") is None and known.get("input_ids") is not None:
            added["position_ids"] = base.compute_3d_position_ids(**known)
    used = set()
    for kind in pixels:
        encode = getattr(base, f"get_{kind}_features")
        names = [name for name in inspect.signature(encode).parameters if inputs.get(name) is not None]
        used.update(names)
        added["mm_encoder_outputs"][kind] = encode(**{name: inputs[name] for name in names}, return_dict=True)
    given = {name: value for name, value in inputs.items() if name not in used}
    return with_arguments(model, given, **added)
