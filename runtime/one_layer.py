"""A decoder layer as Dynamo is to read it once for all of its kind: with what the KV cache holds for it handed in.

A layer writes into the cache, and what Dynamo reads once may have no such effects. So the keys and values go in and
come out as tensors, and around the layer they are taken from the cache and put back. Inside, the code of the cache's
own layer runs on a stand-in of its class. All of this is run by Dynamo alone, while it reads a model.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from segmo.compat.alike import NUMBER
from segmo.compat.layer_reading import Reader
from segmo.compat.regions import regions
from segmo.runtime.cache import CutLayer, CutSlidingLayer, SpreadLayer

# What the code of a cache's layer may set in update() and lazy_initialization(): as much as is carried around here.
_CARRIED = {"keys", "values", "dtype", "device", "is_initialized", "cumulative_length", "_sliding_window_tensor"}
# Layers of a cache that take keys in by the code of the first one.
_GROWING = (DynamicLayer, CutLayer, SpreadLayer)
_WINDOWS = (DynamicSlidingWindowLayer, CutSlidingLayer)


class _Handed(DynamicCache):
    """Stands for the cache inside of one layer, and has nothing of the others."""

    held: DynamicLayer

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        del layer_idx  # the only one that there is; see places_of
        return self.held.update(key_states, value_states, *args, **kwargs)


def without_cache(layer: Any, args: Any, kwargs: Any) -> Any:
    """A layer's result."""
    return layer(*args, **kwargs)


def with_growing(layer: Any, keys: Any, values: Any, args: Any, kwargs: Any) -> Any:
    """A layer's result, and the keys and values that a :class:`DynamicLayer` holds behind it."""
    return _read(layer, _filled(object.__new__(DynamicLayer), keys, values), args, kwargs)


def with_window(layer: Any, keys: Any, values: Any, width: Any, as_tensor: Any, args: Any, kwargs: Any) -> Any:
    """The same for a :class:`DynamicSlidingWindowLayer`."""
    held: Any = _filled(object.__new__(DynamicSlidingWindowLayer), keys, values)
    held.sliding_window, held.cumulative_length, held.record_past = width, 0, False
    held._sliding_window_tensor = as_tensor
    return _read(layer, held, args, kwargs)


def _filled(held: Any, keys: Any, values: Any) -> Any:
    held.is_initialized, held.keys, held.values = keys is not None, keys, values
    if keys is not None:
        held.dtype, held.device = keys.dtype, keys.device
    return held


def _read(layer: Any, held: Any, args: Any, kwargs: Any) -> Any:
    handed: Any = object.__new__(_Handed)
    handed.held = held
    out = layer(*args, **{**kwargs, "past_key_values": handed})
    return out, held.keys, held.values


def _region(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one that Dynamo reads once; itself where there are no regions."""
    if regions is None:
        return function
    made: Callable[..., Any] = torch.compiler.nested_compile_region(function, max_reuse_entries=64)
    return made


_without_cache, _with_growing, _with_window = _region(without_cache), _region(with_growing), _region(with_window)


def through_one(layer: Any, number: int, width: int | None, *args: Any, **kwargs: Any) -> Any:
    """``layer(*args, **kwargs)``, for Dynamo.

    Args:
        layer: of a decoder.
        number: its layer of the cache.
        width: of its sliding window.
        args, kwargs: what it is called with, ``past_key_values`` by name.
    """
    cache = kwargs["past_key_values"]
    if cache is None:
        return _without_cache(layer, args, kwargs)
    if type(cache) is not DynamicCache or cache.offloading:
        return layer(*args, **kwargs)
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= number:
            cache.layers.append(cache.layer_class_to_replicate())
    held: Any = cache.layers[number]
    window = type(held) in _WINDOWS
    if not window and type(held) not in _GROWING:
        return layer(*args, **kwargs)
    if window and (getattr(held, "record_past", False) or held.sliding_window != width):
        return layer(*args, **kwargs)
    kwargs["past_key_values"] = None
    keys, values = (held.keys, held.values) if held.is_initialized else (None, None)
    as_tensor = None if held.is_initialized else getattr(held, "_sliding_window_tensor", None)
    if window:
        out, keys, values = _with_window(layer, keys, values, width, as_tensor, args, kwargs)
    else:
        out, keys, values = _with_growing(layer, keys, values, args, kwargs)
    if not held.is_initialized:
        held.dtype, held.device, held.is_initialized = keys.dtype, keys.device, True
        if as_tensor is not None:
            held._sliding_window_tensor = as_tensor.to(keys.device)
    held.keys, held.values = keys, values
    if window:
        held.cumulative_length += (args[0] if args else kwargs["hidden_states"]).shape[-2]
    return out


def reader() -> Reader | None:
    """How Dynamo is to read decoder layers; None where a cache's own layers do more than is carried around one."""
    known = all(_sets(kind) <= _CARRIED for kind in (DynamicLayer, DynamicSlidingWindowLayer))
    return Reader(places_of, through_one) if known else None


@functools.cache
def _sets(kind: type) -> set[str]:
    """Names of the attributes that a cache layer's code sets where keys come in."""
    trees = (_tree(getattr(kind, name)) for name in ("update", "lazy_initialization"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}


def places_of(layer: torch.nn.Module) -> tuple[int, int | None] | None:
    """Which layer of the cache a decoder layer writes into, and the width of its window.

    Returns:
        None unless it is surely that layer of the cache alone.
    """
    parts = list(layer.modules())
    numbers = {vars(part)[NUMBER] for part in parts if NUMBER in vars(part)}
    widths = {vars(part)["sliding_window"] for part in parts if type(vars(part).get("sliding_window")) is int}
    number = numbers.pop() if len(numbers) == 1 else None
    if type(number) is not int or not all(map(_names_own, map(type, parts))):
        return None
    return number, widths.pop() if len(widths) == 1 else None


@functools.cache
def _names_own(kind: type) -> bool:
    """Whether the code of a module's class updates the cache's layer ``self.layer_idx`` and no other."""
    known = [each for each in kind.__mro__ if each.__module__.partition(".")[0] not in ("torch", "builtins")]
    try:
        calls = [node for each in known for node in ast.walk(_tree(each)) if isinstance(node, ast.Call)]
    except (OSError, TypeError, SyntaxError):  # a class that was made where no file shows how
        return False
    updates = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "update")
    return all(_layer_named(call) in ("", f"self.{NUMBER}") for call in updates)


def _layer_named(call: ast.Call) -> str:
    """The code that says which layer of the cache is updated; empty where something else has an ``update``."""
    named = [each.value for each in call.keywords if each.arg == NUMBER]
    given = named or call.args[2:3]
    return ast.unparse(given[0]) if given else ""


def _tree(code: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(code))))
