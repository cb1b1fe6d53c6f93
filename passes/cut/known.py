"""Calls that were run before on values of the same sizes: one decoder layer is like the other.

Running a call on fake tensors is most of the time of a cut. What it gives depends on the sizes that it reads and on
plain arguments alone, so a call that is like an earlier one gives what that gave.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

# They give a tensor other sizes in place, so that two values must not be the same object.
_RESIZE = {
    "unsqueeze_", "squeeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "resize_", "resize_as_", "as_strided_",
    "set_", "data",
}  # fmt: skip
_PLAIN = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class KnownCalls:
    """What calls gave, by what they are and read.

    Args:
        graph: that the calls are from.
    """

    def __init__(self, graph: Graph) -> None:
        self._found: dict[Any, Any] = {}
        self._moment = 0
        self._alone = any(node.target in _RESIZE for node in graph.nodes if node.op == "call_method")

    def value(self, node: Node, args: Any, kwargs: Any, run: Callable[[Node, Any, Any], Any]) -> Any:
        """What a call gives: as it was, or by running it.

        Args:
            node: the call.
            args, kwargs: the values of its arguments.
            run: gives the value of a node, called with these.
        """
        try:
            key = (self._moment, node.op, node.target, _key(args), _key(kwargs))
        except TypeError:  # of an argument nothing is known but itself
            value = run(node, args, kwargs)
        else:
            value = self.once(key, lambda: run(node, args, kwargs))
        if node.target is not operator.setitem and not _only_sizes(value):
            # Such as the start or end of a block under autocast: calls behind it may give something else.
            self._moment += 1
        return value

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made under this key, made now if nothing was."""
        if self._alone:
            return make()
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


def _only_sizes(value: Any) -> bool:
    """Whether a value is tensors and numbers."""
    if isinstance(value, (tuple, list)):
        return all(map(_only_sizes, value))
    return isinstance(value, (Tensor, int, float))


def _key(value: Any) -> Any:
    """What a call's result depends on in one of its arguments.

    Raises:
        TypeError: that is not known.
    """
    if isinstance(value, Tensor):
        return (type(value), value.shape, value.stride(), value.storage_offset(), value.dtype, value.device)
    if isinstance(value, _PLAIN):
        return (type(value), value)  # 1, 1.0 and True are equal
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in value.items())
    if isinstance(value, slice):
        return (slice, _key(value.start), _key(value.stop), _key(value.step))
    if value is Ellipsis:
        return value
    raise TypeError(f"{type(value).__name__} has no key")
