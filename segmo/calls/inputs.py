"""The arguments of a call, as a prefill graph wants them: by name, with pixels encoded and positions computed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from segmo.calls.videos import COMPRESSION
from segmo.compat.arguments import require_parameters, with_arguments
from segmo.families import encoder_of

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


def pictures_of(inputs: Mapping[str, Any]) -> set[str]:
    """The kinds of pictures that a call brings, as pixels or encoded: "video", "image"."""
    outputs = inputs.get("mm_encoder_outputs")
    known = outputs if isinstance(outputs, Mapping) else {}
    return {kind for kind, name in _PIXELS.items() if inputs.get(name) is not None or known.get(kind) is not None}


def encoded(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a direct call with pixels encoded and M-RoPE positions computed; others as they are.

    ``generate`` does the same before it calls the model. Inside of the graph, both would break it.
    """
    outputs = inputs.get("mm_encoder_outputs")
    there = {} if outputs is None else outputs  # generate encodes what it knows how to, which may be nothing
    if not isinstance(there, dict):
        return inputs
    base = model.base_model
    encoders = {
        kind: encoder_of(base, kind)
        for kind, name in _PIXELS.items()
        if inputs.get(name) is not None and there.get(kind) is None
    }
    pixels = {kind: encode for kind, encode in encoders.items() if encode is not None}
    if not pixels and outputs is None:
        return inputs
    added: dict[str, Any] = {"mm_encoder_outputs": {**there}} if pixels else {}
    require_parameters(model, *added)
    if hasattr(base, "compute_3d_position_ids") and inputs.get("position_ids") is None:
        wanted = inspect.signature(base.compute_3d_position_ids).parameters
        known: dict[str, Any] = {name: inputs.get(name) for name in wanted if name != "kwargs"}
        if known.get("inputs_embeds") is None and known.get("input_ids") is not None:
            known["inputs_embeds"] = known["input_ids"][..., None]  # asked for its shape where a cache holds tokens
            added["position_ids"] = base.compute_3d_position_ids(**known)
    used = set()
    for kind, encode in pixels.items():
        names = [name for name in inspect.signature(encode).parameters if inputs.get(name) is not None]
        used.update(names)
        added["mm_encoder_outputs"][kind] = encode(**{name: inputs[name] for name in names}, return_dict=True)
    others = {name: value for name, value in inputs.items() if name not in used}
    return with_arguments(model, others, **added) if added else inputs


def joined(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with the features of all videos (and of all images) in one tensor each.

    Encoders hand them out one by one, or frame by frame, and the model joins them first thing. A graph is one for a
    number of tensors, so that each number of videos would be compiled anew.
    """
    outputs = inputs.get("mm_encoder_outputs")
    if not isinstance(outputs, dict):
        return inputs
    return _compressed({**inputs, "mm_encoder_outputs": {k: _one_tensor(output) for k, output in outputs.items()}})


def _compressed(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with those features of a video left out that the processor found to repeat (VideoLLaMA3).

    The model does it first thing, by a mask; inside of a graph, how many are left would not be known.
    """
    mask, output = inputs.get(COMPRESSION), inputs["mm_encoder_outputs"].get("video")
    features: Any = getattr(output, "pooler_output", None)
    if not isinstance(mask, torch.Tensor) or features is None:
        return inputs
    whole = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
    output = copy.copy(output)
    output.pooler_output = (whole[mask.to(whole.device)],)
    others = {name: value for name, value in inputs.items() if name != COMPRESSION}
    return {**others, "mm_encoder_outputs": {**inputs["mm_encoder_outputs"], "video": output}}


def _one_tensor(output: Any) -> Any:
    features: Any = getattr(output, "pooler_output", None)
    levels: Any = getattr(output, "deepstack_features", None)
    if not _several(features):
        return output
    output = copy.copy(output)
    output.pooler_output = (torch.cat(list(features)),)
    if isinstance(levels, (list, tuple)) and all(map(_several, levels)):
        output.deepstack_features = [(torch.cat(list(level)),) for level in levels]
    return output


def _several(features: Any) -> bool:
    return (
        isinstance(features, (list, tuple))
        and len(features) > 1
        and all(isinstance(each, torch.Tensor) for each in features)
        and len({each.shape[1:] for each in features}) == 1
    )
