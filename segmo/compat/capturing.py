"""transformers' hooks that collect hidden states: the first call that asks for them puts them on a model's layers.

Dynamo does not trace how they are put there, so a compiled call that asks has them in place before its graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from segmo.compat.versions import installed

WHAT = "transformers.utils.output_capturing.capture_outputs and maybe_install_capturing_hooks"
VERSIONS = "transformers 5.18 to 5.24"

_WHERE = "transformers.utils.output_capturing"


class Capturing:
    """The parts of one model that can have outputs of their layers collected."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parts: list[Any] = [module for module in model.modules() if _captures(module)]

    def prepare(self, inputs: Mapping[str, Any]) -> None:
        """Puts the hooks on what a call with these arguments has collected, as the call would, outermost first."""
        for part in self._parts:
            asked = (f"output_{key}" for key in part._can_record_outputs or ())
            if any(inputs.get(name, getattr(part.config, name, False)) for name in asked):
                from transformers.utils.output_capturing import maybe_install_capturing_hooks

                maybe_install_capturing_hooks(part)


def _captures(module: torch.nn.Module) -> bool:
    """Whether this module's forward collects: others say what their parts can record, and hook nothing themselves."""
    return _collects(inspect.unwrap(type(module).forward, stop=_collects))


def _collects(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    made_by = code is not None and code.co_qualname.partition(".")[0]
    return made_by == "capture_outputs" and function.__globals__["__name__"] == _WHERE


def fits() -> str | None:
    """Where there is a transformers, it has to have both."""
    try:
        from transformers.utils import output_capturing
    except ImportError:
        return "transformers has no output_capturing" if installed("transformers") else None
    if not hasattr(output_capturing, "maybe_install_capturing_hooks"):
        return "it has no maybe_install_capturing_hooks"
    made = output_capturing.capture_outputs(lambda self: self)  # type: ignore[no-untyped-call]
    return None if _collects(made) else "what capture_outputs makes has another name"
