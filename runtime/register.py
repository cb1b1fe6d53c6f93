"""How SegMo's operators are registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from segmo.compat.operators import CustomOpDef, function_of, name_of

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operator(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Makes a function the operator ``torch.ops.segmo.NAME``, which changes none of its arguments."""
    return torch.library.custom_op(f"segmo::{name}", mutates_args=())


def fake(op: CustomOpDef) -> Callable[[_Function], _Function]:
    """Registers the function that gives an operator's output shape.

    It names those of the operator's arguments alone that the shape depends on, so a signature stands once.

    Raises:
        TypeError: it names an argument that the operator does not have.
    """
    signature = inspect.signature(function_of(op))

    def register(function: _Function) -> _Function:
        needed = inspect.signature(function).parameters.keys()
        if unknown := needed - signature.parameters.keys():
            raise TypeError(f"the fake of {name_of(op)} names {', '.join(sorted(unknown))}, which it is not given")

        def shapes(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(**{name: bound.arguments[name] for name in needed})

        op.register_fake(shapes)
        return function

    return register
