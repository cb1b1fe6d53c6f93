"""A device that there is not: tensors that say they lie on it, computed on the CPU, and every stop of its queue noted.

A dispatch mode sees each call that reaches PyTorch's kernels. What would make the host wait for a GPU (a scalar or a
shape that depends on values, a copy to the host or from it that is waited for) is noted with the lines that asked. What
a GPU would refuse, tensors of the host among those of the device, is an error.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import segmo.runtime.ops
import segmo.runtime.token_ops
from segmo.compat.operators import function_of
from segmo.passes.runner import observe

FAR = torch.device("meta")  # stands for a GPU: PyTorch has no code of its own for it that would mind
ATEN: Any = torch.ops.aten
BY_VALUE = {
    ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.bincount, ATEN.is_nonzero, ATEN.equal,
    ATEN._unique2, ATEN.unique_dim, ATEN.unique_consecutive, ATEN.unique_dim_consecutive,
}  # fmt: skip
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}


class Far(torch.Tensor):
    """A tensor on that device; ``near`` holds its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        offset = near.storage_offset()
        made = torch.Tensor._make_wrapper_subclass(cls, near.shape, near.stride(), offset, dtype=near.dtype, device=FAR)
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} outside of the mode")


def near(value: Any) -> Any:
    """What a value holds, on the CPU."""
    return value.near if isinstance(value, Far) else value


def far(value: Any) -> Any:
    """A tensor as one of that device. A number that Dynamo has wrapped stays on the CPU."""
    return Far(value) if isinstance(value, Tensor) and value.dim() else value


class FarDevice(TorchDispatchMode):
    """Runs a rewritten graph on :class:`Far` tensors, and the inside of SegMo's operators too.

    Attributes:
        stops: each call that would have stopped the queue, with the innermost lines that asked for it, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stops: list[str] = []
        self.inside = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kernel = "segment_attention" in str(function) and args[-1] != "reference"  # one call on a GPU
        if function.namespace == "segmo" and not kernel:
            return self._operator(function, args, kwargs)
        if function._can_decompose():
            with self:
                return function.decompose(*args, **kwargs)
        target = kwargs.get("device")
        # A graph that was traced on the CPU names that where it would name the device.
        to_far = target is not None and (torch.device(target).type == FAR.type or not self.inside)
        values = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not to_far and not any(isinstance(x, Far) for x in values):
            return function(*args, **kwargs)
        host = [x for x in values if x.dim() and not isinstance(x, Far)]
        if _waits(function, args, kwargs, values, host, to_far):
            self.stops.append(f"{function} {_asker()}")
        elif host and self.inside and function.overloadpacket not in (ATEN._to_copy, ATEN.copy_):
            raise RuntimeError(f"{function} mixes the host's tensors with the device's: {_asker()}")
        if target is not None:
            kwargs = {**kwargs, "device": "cpu"}
        found = function(*tree_map(near, args), **tree_map(near, kwargs))
        if function._schema.is_mutable and args and found is near(args[0]):
            return args[0]
        leaves = target is not None and not to_far
        return found if leaves else tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, found)

    def _operator(self, function: Any, args: Any, kwargs: Any) -> Any:
        name = function._schema.name.partition("::")[2]
        owner = next(m for m in (segmo.runtime.ops, segmo.runtime.token_ops) if hasattr(m, name))
        self.inside = True
        try:
            with self, _Arrays():  # without what is around an operator for autocast, which does not know the device
                return inspect.unwrap(function_of(getattr(owner, name)))(*args, **kwargs)
        finally:
            self.inside = False


class _Arrays(TorchFunctionMode):
    """Lets tensors of the host become arrays, which PyTorch refuses while a dispatch mode looks on."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.numpy and not isinstance(args[0], Far):
            with _disable_current_modes():
                return args[0].numpy()
        return function(*args, **(kwargs or {}))


def _waits(function: Any, args: Any, kwargs: Any, values: list[Tensor], host: list[Tensor], to_far: bool) -> bool:
    packet = function.overloadpacket
    if packet in INDEXING:
        return bool(host) or any(x.dtype in (torch.bool, torch.uint8) for x in values[1:])
    if packet is ATEN._to_copy:
        waited = bool(host) and not kwargs.get("non_blocking", False)
        return waited or ("device" in kwargs and not to_far)
    if packet is ATEN.copy_:
        return not isinstance(args[0], Far) or (bool(host) and args[2:3] != (True,))
    return packet in BY_VALUE or function is ATEN.repeat_interleave.Tensor


def _asker() -> str:
    frames = [f for f in traceback.extract_stack() if "/runtime/" in f.filename or "eval_with_key" in f.filename]
    return " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in frames[:-5:-1])


@contextmanager
def prefills_far_away() -> Iterator[list[list[str]]]:
    """Every prefill that is compiled inside runs on that device; gives the stops of each, also of one that failed."""
    runs: list[list[str]] = []

    def move(when: str, passed: Any, gm: Any) -> None:
        if when == "after" and passed.name == "lower-kernels":
            gm.forward = forward_of(gm)

    def forward_of(gm: Any) -> Any:
        def forward(*args: Any) -> Any:
            if any(isinstance(x, Far) for x in args):  # the first call makes the graph's code, and calls it
                return type(gm).forward(gm, *args)
            with FarDevice() as device:
                runs.append(device.stops)
                found = type(gm).forward(gm, *map(far, args))
            return tree_map(near, found)

        return forward

    with observe(move):
        yield runs
