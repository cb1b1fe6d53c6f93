"""Which decoder layers Dynamo may read once for all of their kind, and how.

They are those whose code is known (:func:`places_of`): what stands for the cache in a layer (:mod:`handed_cache`) could
be told from a cache by code that asks.
"""

from __future__ import annotations

import ast
import functools
from typing import Any

import torch

from segmo.compat.alike import NUMBER, hooked
from segmo.compat.layer_reading import Reader
from segmo.runtime import handed_cache
from segmo.runtime.handed_cache import ASKED, through_cache
from segmo.runtime.layer_code import functions_of, is_known_class, package, tree

_WIDTH = "sliding_window"
_LEAVES_KEYS = "store_full_length_kv"  # for later layers


def through_one(layer: Any, number: int, width: int | None, places: str, *args: Any, **kwargs: Any) -> Any:
    """``layer(*args, **kwargs)``, for Dynamo.

    Args:
        layer: of a decoder.
        number: its layer of the cache.
        width: of its sliding window.
        places: where in the layer these two stand, paths of attributes with a blank between them.
        args, kwargs: what it is called with, ``past_key_values`` by name.
    """
    result = through_cache(layer, number, width, args, kwargs)
    # Read by Dynamo behind the layer, in which nothing may depend on them: so it notices when they are others.
    for place in places.split():
        found = layer
        for name in place.split("."):
            found = getattr(found, name)
        if found != number and found != width:
            raise RuntimeError("a layer's number was changed")
    return result


def reader() -> Reader | None:
    """How Dynamo is to read decoder layers; None where a cache's own layers do more than is carried around one."""
    return Reader(places_of, through_one) if handed_cache.is_as_known() else None


def places_of(layer: torch.nn.Module) -> tuple[int, int | None, str] | None:
    """Which layer of the cache a decoder layer writes into, the width of its window, and where in it these stand.

    Returns:
        None unless it is surely that layer of the cache alone, and the code of all that it is made of is known.
    """
    parts = dict(layer.named_modules())
    if any(map(hooked, parts.values())) or not all(map(_is_known, set(map(type, parts.values())))):
        return None
    if any(getattr(part, _LEAVES_KEYS, False) for part in parts.values()):
        return None
    numbers, widths = _where(parts, NUMBER), _where(parts, _WIDTH)
    if len({*numbers.values()}) != 1 or len({*widths.values()}) > 1:
        return None
    return next(iter(numbers.values())), next(iter(widths.values()), None), " ".join([*numbers, *widths])


def _where(parts: dict[str, torch.nn.Module], name: str) -> dict[str, int]:
    """Numbers that parts of a layer have under a name, by their paths in the layer."""
    found = {f"{path}.{name}".lstrip("."): vars(part).get(name) for path, part in parts.items()}
    return {path: value for path, value in found.items() if type(value) is int}


def _is_known(kind: type) -> bool:
    """Whether a module's class is of a package that is known, and asks of a cache for the layer of its number alone."""
    return is_known_class(kind) and _names_own(kind)


@functools.cache
def _names_own(kind: type) -> bool:
    """Whether code names ``self.layer_idx`` wherever it asks a cache for one of its layers."""
    own = [each for each in kind.__mro__ if package(each.__module__) not in ("torch", "builtins")]
    functions = [function for each in own for function in functions_of(each)]
    try:
        calls = [node for each in functions for node in ast.walk(tree(each)) if isinstance(node, ast.Call)]
    except (OSError, TypeError, SyntaxError):  # code that was made where no file shows how
        return False
    return all(_names_its_number(call) for call in calls)


def _names_its_number(call: ast.Call) -> bool:
    asked = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if asked not in ASKED:
        return True
    named = [each.value for each in call.keywords if each.arg == NUMBER]
    given = named or call.args[ASKED[asked] :][:1]
    if not given:
        return asked == "update"  # of something else that has one
    return ast.unparse(given[0]) == f"self.{NUMBER}"
