"""The model that is really called, inside whatever a user hands over: PEFT, a pipeline, wrappers of any kind.

A wrapper's ``generate`` calls the model inside it, so it is that one which has to be compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from segmo.errors import OptionError
from segmo.families import takes_video


def inner_models(given: object) -> list[PreTrainedModel]:
    """The Video LLMs in a module, or in the attributes of another object; each once, none in another.

    Args:
        given: a model, a wrapper around one, or an object that holds one, such as ``transformers.pipeline``.
    """
    found: dict[int, PreTrainedModel] = {}
    for module in _modules(given):
        if isinstance(module, PreTrainedModel) and takes_video(module):
            found.setdefault(id(module), module)
    inside = {id(part) for model in found.values() for part in model.modules() if part is not model}
    return [model for key, model in found.items() if key not in inside]


def inner_model(given: object) -> PreTrainedModel:
    """The one Video LLM that is really called.

    Raises:
        OptionError: there is none, there are several, or what holds it copies it for every call.
    """
    if isinstance(given, torch.nn.DataParallel):
        raise OptionError(
            "DataParallel copies the model for every call, so nothing that was compiled is ever called; use one "
            "process for each GPU (DistributedDataParallel), or hand in the model itself"
        )
    models = inner_models(given)
    if len(models) == 1:
        return models[0]
    name = type(given).__name__
    if models:
        kinds = ", ".join(type(model).__name__ for model in models)
        raise OptionError(f"{name} holds {len(models)} Video LLMs ({kinds}); compile the one that you mean")
    config = getattr(given, "config", None)
    if isinstance(given, PreTrainedModel) and config is not None:
        raise OptionError(
            f"{config.model_type!r} is no Video LLM: it generates no text, or has neither get_video_features nor a "
            "placeholder token for images or video in its config"
        )
    raise OptionError(
        f"SegMo finds no Video LLM in {name}, neither as a module of it nor as an attribute; hand in the model that "
        "its generate calls"
    )


def _modules(given: object) -> Iterator[torch.nn.Module]:
    """All modules in what a user hands over, from the outside in."""
    if isinstance(given, torch.nn.Module):
        yield from given.modules()
    for value in _values(getattr(given, "__dict__", {}).values()):
        if isinstance(value, torch.nn.Module):
            yield from value.modules()


def _values(attributes: Iterable[Any]) -> Iterator[Any]:
    """Attributes, and what lists, tuples and dictionaries among them hold: modules that torch does not register."""
    for value in attributes:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value
