"""A decoder layer as Dynamo is to read it once for all of its kind: with what the KV cache holds for it handed in.

A layer writes into the cache, and what Dynamo reads once may have no such effects. So the keys and values go in and
come out as tensors, and around the layer they are taken from the cache and put back. Inside, the code of the cache's
own layer runs on a stand-in of its class. All of this is run by Dynamo alone, while it reads a model.

It is for layers whose code is known (:func:`places_of`): a stand-in could be told from a cache by code that asks.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from segmo.compat.alike import NUMBER, hooked
from segmo.compat.layer_reading import Reader
from segmo.compat.regions import regions
from segmo.runtime.cache import CutLayer, CutSlidingLayer, SpreadLayer

# What the code of a cache's layer may set in update() and lazy_initialization(): as much as is carried around here.
_CARRIED = {"keys", "values", "dtype", "device", "is_initialized", "cumulative_length", "_sliding_window_tensor"}
# Layers of a cache that take keys in by the code of the first one.
_GROWING = (DynamicLayer, CutLayer, SpreadLayer)
_WINDOWS = (DynamicSlidingWindowLayer, CutSlidingLayer)
_UPDATE = Cache.update
_WIDTH = "sliding_window"
# Whose code may be in a layer. That of others may ask what is not asked here, or change things between two layers.
_KNOWN = ("torch", "transformers", "peft", "abc", "typing")


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
    result = _read(layer, held, args, kwargs)
    if held.cumulative_length != _rows(args, kwargs):
        raise RuntimeError("a layer that has not one key for each of its rows")
    return result


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


def _rows(args: Any, kwargs: Any) -> Any:
    return (args[0] if args else kwargs["hidden_states"]).shape[-2]


def through_one(layer: Any, number: int, width: int | None, places: str, *args: Any, **kwargs: Any) -> Any:
    """``layer(*args, **kwargs)``, for Dynamo.

    Args:
        layer: of a decoder.
        number: its layer of the cache.
        width: of its sliding window.
        places: where in the layer these two stand, paths of attributes with a blank between them.
        args, kwargs: what it is called with, ``past_key_values`` by name.
    """
    result = _through_cache(layer, number, width, args, kwargs)
    # Read by Dynamo behind the layer, in which nothing may depend on them: so it notices when they are others.
    for place in places.split():
        found = layer
        for name in place.split("."):
            found = getattr(found, name)
        if found != number and found != width:
            raise RuntimeError("a layer's number was changed")
    return result


def _through_cache(layer: Any, number: int, width: int | None, args: Any, kwargs: Any) -> Any:
    cache = kwargs["past_key_values"]
    if cache is None:
        return _without_cache(layer, args, kwargs)
    if type(cache) is not DynamicCache or cache.offloading or not _is_own(cache, _UPDATE):
        return layer(*args, **kwargs)
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= number:
            cache.layers.append(cache.layer_class_to_replicate())
    held: Any = cache.layers[number]
    window = type(held) in _WINDOWS
    if not window and type(held) not in _GROWING:
        return layer(*args, **kwargs)
    if not _is_own(held, DynamicSlidingWindowLayer.update if window else DynamicLayer.update):
        return layer(*args, **kwargs)
    if window and (getattr(held, "record_past", False) or held.sliding_window != width):
        return layer(*args, **kwargs)
    kwargs = {**kwargs, "past_key_values": None}
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
        held.cumulative_length += _rows(args, kwargs)
    return out


def _is_own(cache: Any, update: Any) -> bool:
    """Whether ``update`` is what takes keys in, and nothing was put in its place in the object or in its class."""
    return type(cache).update is update and isinstance(cache.update, MethodType)


def reader() -> Reader | None:
    """How Dynamo is to read decoder layers; None where a cache's own layers do more than is carried around one."""
    code = tuple(getattr(kind, name) for kind in (DynamicLayer, DynamicSlidingWindowLayer) for name in _TAKES_IN)
    own = DynamicCache.update is _UPDATE and all(map(_is_known, (*code, _UPDATE)))
    return Reader(places_of, through_one) if own and _sets(code) <= _CARRIED and not _sets((_UPDATE,)) else None


_TAKES_IN = ("update", "lazy_initialization")


@functools.cache
def _sets(code: tuple[FunctionType, ...]) -> set[str]:
    """Names of the attributes that functions set."""
    nodes = (node for function in code for node in ast.walk(_tree(function)) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}


def places_of(layer: torch.nn.Module) -> tuple[int, int | None, str] | None:
    """Which layer of the cache a decoder layer writes into, the width of its window, and where in it these stand.

    Returns:
        None unless it is surely that layer of the cache alone, and the code of all that it is made of is known.
    """
    parts = dict(layer.named_modules())
    if any(map(hooked, parts.values())) or not all(map(_has_known_code, set(map(type, parts.values())))):
        return None
    numbers, widths = _where(parts, NUMBER), _where(parts, _WIDTH)
    if len({*numbers.values()}) != 1 or len({*widths.values()}) > 1:
        return None
    return next(iter(numbers.values())), next(iter(widths.values()), None), " ".join([*numbers, *widths])


def _where(parts: dict[str, torch.nn.Module], name: str) -> dict[str, int]:
    """Numbers that parts of a layer have under a name, by their paths in the layer."""
    found = {f"{path}.{name}".lstrip("."): vars(part).get(name) for path, part in parts.items()}
    return {path: value for path, value in found.items() if type(value) is int}


def _has_known_code(kind: type) -> bool:
    """Whether a module's class is of a package that is known, and updates no other layer of a cache than its own."""
    classes = [each for each in kind.__mro__ if each is not object]
    functions = (value for each in classes if _package(each.__module__) != "torch" for value in _functions(each))
    known = all(_package(each.__module__) in _KNOWN for each in classes) and all(map(_is_known, functions))
    return known and _names_own(kind)


def _functions(kind: type) -> Iterator[Callable[..., Any]]:
    for value in vars(kind).values():
        function = getattr(value, "__func__", getattr(value, "fget", value))  # of a class method, of a property
        if isinstance(function, FunctionType):
            yield function


def _is_known(function: Any) -> bool:
    """Whether a function is of a package that is known; what it wraps included."""
    while function is not None:
        if _package(getattr(function, "__globals__", {}).get("__name__", "")) not in _KNOWN:
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _package(module: str) -> str:
    return module.partition(".")[0]


@functools.cache
def _names_own(kind: type) -> bool:
    """Whether the code of a module's class updates the cache's layer ``self.layer_idx`` and no other."""
    own = [each for each in kind.__mro__ if _package(each.__module__) not in ("torch", "builtins")]
    functions = [function for each in own for function in _functions(each)]
    try:
        calls = [node for each in functions for node in ast.walk(_tree(each)) if isinstance(node, ast.Call)]
    except (OSError, TypeError, SyntaxError):  # code that was made where no file shows how
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
