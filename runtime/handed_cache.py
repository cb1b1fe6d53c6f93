"""A KV cache's layer as it is handed into a decoder layer that Dynamo reads once for all of its kind, and out again.

A layer writes into the cache, and what Dynamo reads once may have no such effects. So what the cache holds for it goes
in and comes out as tensors, and around the layer it is taken from the cache and put back. Inside, the code of the
cache's own layer runs on a stand-in of its class. All of this is run by Dynamo alone, while it reads a model.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from segmo.compat.regions import regions
from segmo.runtime.cache import CutLayer, CutSlidingLayer, SpreadLayer
from segmo.runtime.layer_code import is_known, sets

# Layers of a cache that take keys in by the code of the first one.
_GROWING = (DynamicLayer, CutLayer, SpreadLayer)
_WINDOWS = (DynamicSlidingWindowLayer, CutSlidingLayer)
_EMPTY: Any = getattr(cache_utils, "DummyLayer", None)  # of decoder layers that have no attention
# The argument by which layers hand keys and values on to later ones, by a name of each pair.
_SHARED = "shared_kv_states"
_STATES_TAKEN = ("update_conv_state", "update_recurrent_state")
# What a decoder layer may ask of a cache, and which argument says of which of its layers.
_STATES_ASKED = {
    **dict.fromkeys(_STATES_TAKEN, 1),
    **dict.fromkeys(("get_conv_state", "get_recurrent_state", "is_recording_past"), 0),
}
ASKED = {"update": 2, **_STATES_ASKED}
_CACHE = {name: getattr(Cache, name) for name in ASKED if hasattr(Cache, name)}
_TAKES_IN = ("update", "lazy_initialization")
# What that code may set in a layer of the cache: as much as is carried around here.
_CARRIED = {"keys", "values", "dtype", "device", "is_initialized", "cumulative_length", "_sliding_window_tensor"}
_STATES = {
    *("conv_states", "recurrent_states", "is_conv_states_initialized", "is_recurrent_states_initialized"),
    *("has_previous_state", "conv_kernel_size", "dtype", "device"),
}


def _linear() -> tuple[Any, dict[str, Any]]:
    """The class of a cache's layers of linear attention and short convolutions, and its code; None if not as known."""
    kind: Any = getattr(cache_utils, "LinearAttentionLayer", None)
    names = (*_STATES_TAKEN, "lazy_initialization")
    if kind is None or not all(hasattr(kind, name) for name in names) or len(_CACHE) < len(ASKED):
        return None, {}
    code = {name: getattr(kind, name) for name in names}
    try:
        alike = sets(tuple(code.values())) <= _STATES
        alike = alike and sets((kind.__init__,)) == {*_STATES, "number_of_states", "record_past"}
    except OSError:
        alike = False
    return (kind, code) if alike and all(map(is_known, code.values())) else (None, {})


_LINEAR, _TAKES_STATES = _linear()


class _Handed(DynamicCache):
    """Stands for the cache inside of one layer, and has nothing of the others."""

    only: Any  # a cache of this one layer

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        del layer_idx  # the only one that there is; see one_layer.places_of
        return self.only.update(key_states, value_states, 0, *args, **kwargs)

    def get_conv_state(self, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        del layer_idx
        return self.only.get_conv_state(0, *args, **kwargs)

    def get_recurrent_state(self, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        del layer_idx
        return self.only.get_recurrent_state(0, *args, **kwargs)

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        del layer_idx
        return self.only.update_conv_state(conv_states, 0, *args, **kwargs)

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        del layer_idx
        return self.only.update_recurrent_state(recurrent_states, 0, *args, **kwargs)

    def is_recording_past(self, layer_idx: int) -> Any:
        del layer_idx
        return self.only.is_recording_past(0)


def without_cache(layer: Any, args: Any, kwargs: Any) -> Any:
    """A layer's result."""
    return _shares_nothing(layer, args, kwargs)


def with_growing(layer: Any, keys: Any, values: Any, args: Any, kwargs: Any) -> Any:
    """A layer's result, and the keys and values that a :class:`DynamicLayer` holds behind it."""
    held = _filled(object.__new__(DynamicLayer), keys, values)
    return _read(layer, held, args, kwargs), held.keys, held.values


def with_window(layer: Any, keys: Any, values: Any, width: Any, as_tensor: Any, args: Any, kwargs: Any) -> Any:
    """The same for a :class:`DynamicSlidingWindowLayer`."""
    held: Any = _filled(object.__new__(DynamicSlidingWindowLayer), keys, values)
    held.sliding_window, held.cumulative_length, held.record_past = width, 0, False
    held._sliding_window_tensor = as_tensor
    out = _read(layer, held, args, kwargs)
    if held.cumulative_length != _rows(args, kwargs):
        raise RuntimeError("a layer that has not one key for each of its rows")
    return out, held.keys, held.values


def with_new_states(layer: Any, args: Any, kwargs: Any) -> Any:
    """A layer's result, and the states that a linear layer holds behind it, which held none: one, or two."""
    held = _LINEAR()
    out, conv, recurrent = _read(layer, held, args, kwargs), held.conv_states[0], held.recurrent_states[0]
    return (out, conv) if recurrent is None else (out, conv, recurrent)


def with_nothing(layer: Any, args: Any, kwargs: Any) -> Any:
    """The result of a layer for which a cache holds nothing."""
    return _read(layer, _EMPTY(), args, kwargs)


def with_states(layer: Any, conv: Any, recurrent: Any, args: Any, kwargs: Any) -> Any:
    """A layer's result; the states of a linear layer, (B, C, W) and (B, A, D, E) or None, are changed in place."""
    held = _LINEAR()
    _hold(held, conv, recurrent)
    out = _read(layer, held, args, kwargs)
    if held.conv_states[0] is not conv or held.recurrent_states[0] is not recurrent:
        raise RuntimeError("a layer that puts another tensor in a state's place")
    return out


def _filled(held: Any, keys: Any, values: Any) -> Any:
    held.is_initialized, held.keys, held.values = keys is not None, keys, values
    if keys is not None:
        held.dtype, held.device = keys.dtype, keys.device
    return held


def _hold(held: Any, conv: Any, recurrent: Any) -> None:
    """As a linear layer is behind its first call."""
    if held.device is None:
        held.dtype, held.device = conv.dtype, conv.device
    held.conv_kernel_size[0] = conv.shape[-1]
    held.conv_states[0], held.is_conv_states_initialized[0], held.has_previous_state[0] = conv, True, True
    if recurrent is not None:
        held.recurrent_states[0], held.is_recurrent_states_initialized[0] = recurrent, True


def _read(layer: Any, held: Any, args: Any, kwargs: Any) -> Any:
    handed: Any = object.__new__(_Handed)
    handed.only = object.__new__(DynamicCache)
    handed.only.layers, handed.only.layer_class_to_replicate, handed.only.offloading = [held], None, False
    return _shares_nothing(layer, args, {**kwargs, "past_key_values": handed})


def _shares_nothing(layer: Any, args: Any, kwargs: Any) -> Any:
    """The result of a layer that may take keys and values of another layer, and leaves none for others."""
    shared = kwargs.get(_SHARED)
    if shared is None:
        return layer(*args, **kwargs)
    given = {**shared}
    out = layer(*args, **{**kwargs, _SHARED: given})
    if [*given] != [*shared] or any(given[name] is not shared[name] for name in shared):
        raise RuntimeError("a layer that leaves keys for others")
    return out


def _region(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one that Dynamo reads once; itself where there are no regions."""
    if regions is None:
        return function
    made: Callable[..., Any] = torch.compiler.nested_compile_region(function, max_reuse_entries=64)
    return made


_without_cache, _with_growing, _with_window = _region(without_cache), _region(with_growing), _region(with_window)
_with_new_states, _with_states, _with_nothing = _region(with_new_states), _region(with_states), _region(with_nothing)


def _rows(args: Any, kwargs: Any) -> Any:
    return (args[0] if args else kwargs["hidden_states"]).shape[-2]


def through_cache(layer: Any, number: int, width: int | None, args: Any, kwargs: Any) -> Any:
    """``layer(*args, **kwargs)``, as a region where the cache's layer is of a kind that can be handed in.

    Args:
        layer: of a decoder.
        number: its layer of the cache.
        width: of its sliding window.
        args, kwargs: what it is called with, ``past_key_values`` by name.
    """
    cache, handed = kwargs["past_key_values"], {**kwargs, "past_key_values": None}
    if isinstance(kwargs.get(_SHARED), UserDict):
        handed[_SHARED] = {**kwargs[_SHARED].data}
    if cache is None:
        return _without_cache(layer, args, handed)
    if type(cache) is not DynamicCache or cache.offloading:
        return layer(*args, **kwargs)
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= number:
            cache.layers.append(cache.layer_class_to_replicate())
    held: Any = cache.layers[number]
    if type(held) is _EMPTY:
        return _with_nothing(layer, args, handed)
    if type(held) in _GROWING and _takes_in(cache, held, DynamicLayer.update):
        return _through_growing(layer, held, args, handed)
    if type(held) in _WINDOWS and held.sliding_window == width and not getattr(held, "record_past", False):
        own = _takes_in(cache, held, DynamicSlidingWindowLayer.update)
        return _through_window(layer, held, width, args, handed) if own else layer(*args, **kwargs)
    if type(held) is _LINEAR and held.number_of_states == 1 and not held.record_past and _keeps(cache, held):
        return _through_states(layer, held, args, handed, kwargs)
    return layer(*args, **kwargs)


def _through_growing(layer: Any, held: Any, args: Any, kwargs: Any) -> Any:
    keys, values = (held.keys, held.values) if held.is_initialized else (None, None)
    out, keys, values = _with_growing(layer, keys, values, args, kwargs)
    _put_back(held, keys, values)
    return out


def _through_window(layer: Any, held: Any, width: Any, args: Any, kwargs: Any) -> Any:
    keys, values = (held.keys, held.values) if held.is_initialized else (None, None)
    as_tensor = None if held.is_initialized else getattr(held, "_sliding_window_tensor", None)
    out, keys, values = _with_window(layer, keys, values, width, as_tensor, args, kwargs)
    if as_tensor is not None:
        held._sliding_window_tensor = as_tensor.to(keys.device)
    _put_back(held, keys, values)
    held.cumulative_length += _rows(args, kwargs)
    return out


def _put_back(held: Any, keys: Any, values: Any) -> None:
    if not held.is_initialized:
        held.dtype, held.device, held.is_initialized = keys.dtype, keys.device, True
    held.keys, held.values = keys, values


def _through_states(layer: Any, held: Any, args: Any, handed: Any, kwargs: Any) -> Any:
    conv, recurrent = held.conv_states[0], held.recurrent_states[0]
    if held.has_previous_state[0] and conv is not None and conv.shape[-1] == held.conv_kernel_size[0]:
        return _with_states(layer, conv, recurrent, args, handed)
    if conv is not None or recurrent is not None:  # of a cache that was emptied, or that remembered more
        return layer(*args, **kwargs)
    out, *states = _with_new_states(layer, args, handed)
    _hold(held, states[0], states[1] if len(states) == 2 else None)
    return out


def _takes_in(cache: Any, held: Any, update: Any) -> bool:
    """Whether a cache and its layer take keys in by code that is known."""
    return _is_own(cache, "update", _CACHE["update"]) and _is_own(held, "update", update)


def _keeps(cache: Any, held: Any) -> bool:
    """The same of states."""
    own = all(_is_own(cache, name, _CACHE[name]) for name in _STATES_ASKED)
    return own and all(_is_own(held, name, _TAKES_STATES[name]) for name in _STATES_TAKEN)


def _is_own(held: Any, name: str, function: Any) -> bool:
    """Whether it is this code that answers, and nothing was put in its place in the object or in its class."""
    return getattr(type(held), name) is function and isinstance(getattr(held, name), MethodType)


def is_as_known() -> bool:
    """Whether a cache and its layers do no more than is carried around a decoder layer here."""
    code = tuple(getattr(kind, name) for kind in (DynamicLayer, DynamicSlidingWindowLayer) for name in _TAKES_IN)
    own = all(getattr(DynamicCache, name) is function for name, function in _CACHE.items())
    own = own and all(getattr(_LINEAR, name) is function for name, function in _TAKES_STATES.items())
    known = own and all(map(is_known, (*code, *_CACHE.values())))
    return known and sets(code) <= _CARRIED and not sets((_CACHE["update"],))
