"""accelerate's hooks (``device_map``, offloading): they run around a whole call instead of around each module.

A hook replaces its module's forward by one that loads weights, moves tensors and puts the weights back. In a graph
every such module would be a break. So while a graph runs, hooked modules have their own forward, and the hooks have
done their part before: weights that are offloaded are all loaded for one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segmo.errors import CompileError


class Hooks:
    """The hooks of one model, looked for again when its outermost one is another."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.outermost: Any = None
        self.modules: list[Any] = []

    def call(self, function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """``function(**inputs)`` between what hooks do before a forward and what they do behind it.

        Raises:
            CompileError: the modules compute on several devices.
        """
        outermost = vars(self.model).get("_hf_hook")
        if outermost is None:
            return function(**inputs)
        if outermost is not self.outermost:
            self.modules, self.outermost = _hooked(self.model), outermost
        with self._own_forwards():
            _, moved = outermost.pre_forward(self.model, **inputs)
            return outermost.post_forward(self.model, function(**moved))

    @contextmanager
    def _own_forwards(self) -> Iterator[None]:
        """Inside the block modules have their own forward, and the weights that it takes."""
        forwards: list[tuple[Any, Any]] = []
        try:
            for module in self.modules:
                forwards.append((module, vars(module).pop("forward", None)))
                if module is not self.model:
                    module._hf_hook.pre_forward(module)
            yield
        finally:
            for module, forward in forwards:
                if forward is not None:
                    module.forward = forward
                if module is not self.model:
                    module._hf_hook.post_forward(module, None)


def _hooked(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules with hooks, that of the whole model first.

    Raises:
        CompileError: see :meth:`Hooks.call`.
    """
    found = [module for module in model.modules() if "_hf_hook" in vars(module)]
    places = {torch.device(place) for module in found for place in _places(vars(module)["_hf_hook"])}
    if len(places) > 1:
        raise CompileError(
            f"this model's modules compute on {len(places)} devices ({', '.join(sorted(map(str, places)))}), and a "
            "rewritten graph is for one; load it on one device, or a copy on each, and set the option ranks"
        )
    return found


def _places(hook: Any) -> Iterator[Any]:
    """The devices that a hook, or a sequence of them, moves tensors to."""
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "execution_device", None) is not None:
            yield each.execution_device
