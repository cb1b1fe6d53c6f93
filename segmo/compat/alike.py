"""Whether two decoder layers differ in their weights and their number alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WHAT = "what torch.nn.Module keeps in an object's __dict__"
VERSIONS = "torch 2.11 to 2.15"

NUMBER = "layer_idx"  # transformers' name for a layer's place in its decoder, and in the KV cache

_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def counterparts(one: torch.nn.Module, other: torch.nn.Module) -> dict[int, Tensor] | None:
    """Of each tensor in one layer that in another layer, by the first one's ``id``; None if the layers are not alike.

    Two modules are alike if they are of one class and hold, under the same names: tensors of the same kind, shape,
    strides, dtype and device; modules that are alike; equal numbers, words and collections of such; and of all else the
    very same object. Tensors that several places share have to be shared in both. Layers with hooks are like no other.
    """
    found: dict[int, Tensor] = {}
    alike = _same(one, other, found) and len({id(tensor) for tensor in found.values()}) == len(found)
    return found if alike else None


def _same(one: Any, other: Any, found: dict[int, Tensor]) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.nn.Module):
        return not hooked(one) and not hooked(other) and _same_items(vars(one), vars(other), found)
    if isinstance(one, Tensor):
        alike = _same_kind(one, other) and _same_items(vars(one), vars(other), found)
        return alike and found.setdefault(id(one), other) is other
    if one is other:
        return True
    if isinstance(one, _PLAIN):
        return bool(one == other)
    if isinstance(one, Mapping):
        return _same_items(one, other, found)
    if type(one) is functools.partial:
        return _same(
            (one.func, one.args, one.keywords, vars(one)), (other.func, other.args, other.keywords, vars(other)), found
        )
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(_same(a, b, found) for a, b in zip(one, other, strict=True))
    return type(one) in (set, frozenset) and bool(one == other)


def _same_items(one: Mapping[Any, Any], other: Mapping[Any, Any], found: dict[int, Tensor]) -> bool:
    if list(one) != list(other):
        return False
    return all(key == NUMBER or _same(value, other[key], found) for key, value in one.items())


def _same_kind(one: Tensor, other: Tensor) -> bool:
    plain = type(one) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and one.layout is torch.strided
    return plain and _kind(one) == _kind(other)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def hooked(module: torch.nn.Module) -> bool:
    """Whether something else than its class's forward runs when a module is called."""
    return "forward" in vars(module) or any(vars(module).get(name) for name in _HOOKS)


def fits() -> str | None:
    """A module must keep its hooks under the names that are looked at, and no others."""
    kept = {name for name in vars(torch.nn.Module()) if "forward" in name or "backward" in name}
    known = {*_HOOKS, "_is_full_backward_hook", "_non_persistent_buffers_set"}
    return f"torch.nn.Module keeps {', '.join(sorted(kept - known))}" if kept - known else None
