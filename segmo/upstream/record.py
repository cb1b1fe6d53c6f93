"""A vision encoder as a graph: what it computes on one small input, recorded operator by operator.

Dynamo would break this graph at the loops over ``grid_thw``; here they run as they are, on plain numbers, and what is
recorded is the sequence of ATen calls between pixels and features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils.weak import WeakTensorKeyDictionary

from segmo.compat.operators import TorchDispatchMode


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every ATen call into ``graph``; tensors that it has not seen become inputs named ``constant_N``.

    Each node's ``meta["example_value"]`` is the value itself for whole numbers and flags, so that an analysis can read
    index tensors, and its shape alone (on ``meta``) for others, so that no more memory is held than the call needs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.nodes = WeakTensorKeyDictionary()
        self.last = self.graph._root  # the input entered last
        self.constants = 0

    def enter(self, name: str, value: Tensor) -> Node:
        """Makes a tensor an input of the graph."""
        with self.graph.inserting_after(self.last):
            self.last = self.graph.placeholder(name)
        self._remember(self.last, value)
        return self.last

    def node_of(self, value: Tensor) -> Node:
        """The node that a tensor came from."""
        found: Node | None = self.nodes.get(value)  # type: ignore[no-untyped-call]
        if found is None:
            self.constants += 1
            found = self.enter(f"constant_{self.constants}", value)
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        # Before the call, so that what an in-place call changes is still recorded as what it was.
        arguments = pytree.tree_map_only(Tensor, self.node_of, (args, named))
        result = func(*args, **named)
        node = self.graph.call_function(func, *arguments)
        self._remember(node, result)
        if not isinstance(result, Tensor):
            for place, item in enumerate(result if isinstance(result, (tuple, list)) else ()):
                if isinstance(item, Tensor):
                    self._remember(self.graph.call_function(_item, (node, place)), item)
        return result

    def _remember(self, node: Node, value: Any) -> None:
        node.meta["example_value"] = pytree.tree_map_only(Tensor, _outline, value)
        if isinstance(value, Tensor):
            self.nodes[value] = node


def _outline(value: Tensor) -> Tensor:
    return value.to("meta") if value.dtype.is_floating_point else value


def _item(values: Any, place: int) -> Any:
    """``operator.getitem``, which counts as a mutable built-in elsewhere, under a name of its own."""
    return values[place]


def record(call: Callable[[Tensor], tuple[Tensor, ...]], pixels: Tensor) -> Graph:
    """The graph of ``call`` from ``pixels``, its only placeholder named ``pixels``, to its outputs."""
    recorder = Recorder()
    recorder.enter("pixels", pixels)
    with torch.no_grad(), recorder:
        outputs = call(pixels)
    recorder.graph.output(tuple(recorder.node_of(output) for output in outputs))
    return recorder.graph
