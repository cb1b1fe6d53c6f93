"""How SegMo's operators are registered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from segmo.compat.operators import CustomOpDef, function_of, name_of
from segmo.errors import CompileError

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operator(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Makes a function the operator ``torch.ops.segmo.NAME``, which changes none of its arguments.

    It computes as it is written under autocast too, which would take the products inside of it to another dtype.
    """

    def make(function: Callable[..., Any]) -> CustomOpDef:
        schema = torch.library.infer_schema(function, mutates_args=())
        made = torch.library.custom_op(f"segmo::{name}", _outside_autocast(function), mutates_args=(), schema=schema)
        made.register_autograd(_no_gradient)
        return made

    return make


def _no_gradient(context: Any, *gradients: Any) -> Any:
    """Where PyTorch asks for an operator's gradient.

    Raises:
        CompileError: always.
    """
    raise CompileError(
        "no gradient goes through SegMo's operators, which are for inference: call the model under torch.no_grad() or "
        "torch.inference_mode(), train it with keep=1 and segments=1, or bring it back by segmo.uncompile(model)"
    )


def _outside_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next((value.device.type for value in args if isinstance(value, torch.Tensor)), "cpu")
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def one_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors in the shortest dtype among them: under autocast values come in another one than rotated queries."""
    dtype = min((tensor.dtype for tensor in tensors), key=lambda found: found.itemsize)
    return tuple(tensor.to(dtype) for tensor in tensors)


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
