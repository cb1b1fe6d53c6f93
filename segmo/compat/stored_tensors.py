"""Which tensors of a graph the traced code keeps in a cache: Dynamo's record of attributes to be set."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.side_effects import SideEffects

WHAT = "Dynamo's SideEffects.store_attr_mutations"
VERSIONS = "torch 2.11 to 2.15"

_NAME = "store_attr_mutations"


def stored_tensors() -> frozenset[str]:
    """Names of the nodes of the graph that is being compiled whose values are set as attributes of a cache.

    A cache is an object of a class with "Cache" or "cache" in its name or its module's; transformers' layers of caches
    are. Empty outside of a compilation, and where Dynamo is not of the kind this knows.
    """
    if fits() is not None:
        return frozenset()
    output = _output_graph()
    if output is None:
        return frozenset()
    written = getattr(output.side_effects, _NAME)
    values = [value for owner, fields in written.items() if is_cache(owner) for value in fields.values()]
    return frozenset(name for value in values for name in _nodes(value))


def _output_graph() -> Any:
    frame = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, OutputGraph):
            return found
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return None


def is_cache(owner: Any) -> bool:
    """Whether Dynamo's record of an object is one of a cache."""
    try:
        kind = owner.python_type()
    except Exception:  # noqa: BLE001  # each kind of record has its own way of having no type
        return False
    return is_cache_class(kind)


def is_cache_class(kind: type) -> bool:
    """Whether a class is one of caches: by its own name, its module's, or those of what it is derived from."""
    return any("cache" in f"{each.__module__}.{each.__qualname__}".lower() for each in kind.__mro__)


def _nodes(value: Any, depth: int = 0) -> Iterator[str]:
    """Nodes in a recorded value, also inside lists and dicts."""
    fields = getattr(value, "__dict__", {})  # not by name: a constant has methods of these names that raise
    node = getattr(fields.get("proxy"), "node", None)
    if node is not None:
        yield str(node.name)
    items = fields.get("items")
    if depth < 3 and isinstance(items, (list, dict)):
        for item in items.values() if isinstance(items, dict) else items:
            yield from _nodes(item, depth + 1)


def fits() -> str | None:
    """The record must be there."""
    return None if _NAME in inspect.signature(SideEffects.__init__).parameters else f"SideEffects has no {_NAME}"
