"""What ``torch.compile(model, backend="segmo")`` gives: the model's own methods run what was compiled too."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from segmo.calls.call import Call
from segmo.calls.frames import Generate, prompt_of
from segmo.calls.standing import through
from segmo.compat.dynamo import OptimizedModule


class Optimized(OptimizedModule):
    """torch's optimized module, through whose methods the model's calls go to what was compiled.

    With torch's own, ``generate`` is the method of the model as it was, and runs that.
    """

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name.startswith("_") or "_segmo" not in vars(self):
            return found
        if isinstance(found, Generate):  # of a compilation in place
            found = found.original
        if not isinstance(found, types.MethodType) or found.__self__ is not self._orig_mod:
            return found
        return reaching(vars(self)["_segmo"], found)

    def __reduce__(self) -> Any:
        """Copies and pickles as the model and how it was compiled: it is compiled again there."""
        return _again, (self._orig_mod, vars(self)["_segmo_how"])


def _again(model: torch.nn.Module, how: dict[str, Any]) -> Any:
    return torch.compile(model, backend="segmo", **how)


def optimized(made: OptimizedModule, call: Call, how: dict[str, Any]) -> Optimized:
    """Turns torch's optimized module into one that calls through ``call``.

    Args:
        made: as torch made it, of the model itself or of a wrapper around it.
        call: of the model.
        how: the arguments of ``torch.compile``, for copies.
    """
    vars(made).update(_segmo=call, _segmo_how=how)
    made.__class__ = Optimized
    whole = made._orig_mod
    made.forward = reaching(call, call if whole is call.model else whole, whole.forward)
    untyped: Any = made
    return untyped  # type: ignore[no-any-return]


def reaching(call: Call, function: Callable[..., Any], like: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function in which calls of the model reach ``call``, with the name and signature of ``like``."""
    generates = getattr(function, "__name__", "") == "generate"

    @functools.wraps(like or function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with through(call), prompt_of(call, function, args, kwargs) if generates else nullcontext():
            return function(*args, **kwargs)

    return run
