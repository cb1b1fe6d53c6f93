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
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every ATen call into ``graph``; tensors that it has not seen become inputs named ``constant_N``.

    Each node's ``meta["example_value"]`` is the value itself, so that an analysis can read index tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.nodes: dict[int, Node] = {}
        self.alive: list[Any] = []  # ids are only good while the tensors live
        self.last = self.graph._root  # the input entered last

    def enter(self, name: str, value: Tensor) -> Node:
        """Makes a tensor an input of the graph."""
        with self.graph.inserting_after(self.last):
            self.last = self.graph.placeholder(name)
        self._remember(self.last, value)
        return self.last

    def node_of(self, value: Tensor) -> Node:
        """The node that a tensor came from."""
        return self.nodes.get(id(value)) or self.enter(f"constant_{len(self.nodes)}", value)

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
        node.meta["example_value"] = value
        self.alive.append(value)
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node


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
