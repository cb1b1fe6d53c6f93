"""What torch makes of an operator written in Python, tensors that have shapes alone, and who sees every call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._library.custom_ops import CustomOpDef
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "UNKNOWN_SIZE",
    "CustomOpDef",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "fits",
    "function_of",
    "name_of",
    "shapes_alone",
]

WHAT = "torch._library.custom_ops.CustomOpDef, FakeTensorMode and TorchDispatchMode"
VERSIONS = "torch 2.11 to 2.15"

# What a call on fake tensors raises where the size of its result is in the data.
UNKNOWN_SIZE = (DataDependentOutputException, DynamicOutputShapeException)


@contextmanager
def shapes_alone(mode: FakeTensorMode) -> Iterator[None]:
    """Inside the block calls are those on fake tensors of a mode; sizes that they make up need not be in a graph."""
    shapes = mode.shape_env
    unasked: AbstractContextManager[Any] = nullcontext() if shapes is None else shapes.ignore_fresh_unbacked_symbols()
    with torch.no_grad(), enable_python_dispatcher(), mode, unasked:
        yield


def function_of(op: CustomOpDef) -> Callable[..., Any]:
    """The function that an operator was made of."""
    return op._init_fn


def name_of(op: CustomOpDef) -> str:
    """``namespace::name``."""
    return op._qualname


def fits() -> str | None:
    """What is read of an operator must be set when it is made."""
    source = inspect.getsource(CustomOpDef)
    missing = [name for name in ("_init_fn", "_qualname") if f"self.{name}" not in source]
    return f"CustomOpDef has no {', '.join(missing)}" if missing else None
