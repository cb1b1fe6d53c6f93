"""What the values of a graph are by now. Dynamo has noted what it traced; passes have cut sequences since."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from segmo.compat.operators import FakeTensor, shapes_alone
from segmo.passes.graph import example


class Values(dict[Node, Any]):
    """Values of nodes, as fake tensors, computed in the order of the graph from those of its inputs.

    Fake tensors share memory as the tensors will do.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        traced = (example(node) for node in graph.nodes)
        self._mode = next((value.fake_mode for value in traced if isinstance(value, FakeTensor)), None)

    def compute(self, node: Node) -> Any:
        """The value of a node, of which all operands have one."""
        self[node] = self._computed(node)
        return self[node]

    def _computed(self, node: Node) -> Any:
        if node.op in ("placeholder", "output") or self._mode is None:
            return example(node)
        if node.op == "get_attr":
            found = getattr(node.graph.owning_module, str(node.target))
            if not isinstance(found, Tensor):
                return found
            noted = example(node)
            return self._mode.from_tensor(found) if noted is None else noted  # None of one that a pass has put there
        args, kwargs = map_arg((node.args, node.kwargs), self.__getitem__)
        with shapes_alone(self._mode):
            if node.op == "call_method":
                source, *others = args
                return getattr(source, str(node.target))(*others, **kwargs)
            target: Any = node.target
            return target(*args, **kwargs)
