"""How SegMo's operators are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._library.custom_ops import CustomOpDef

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operator(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Makes a function the operator ``torch.ops.segmo.NAME``, which changes none of its arguments."""
    return torch.library.custom_op(f"segmo::{name}", mutates_args=())


def fake(op: CustomOpDef) -> Callable[[_Function], _Function]:
    """Registers the function that gives an operator's output shape."""

    def register(function: _Function) -> _Function:
        op.register_fake(function)
        return function

    return register
