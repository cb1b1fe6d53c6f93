"""A graph as it stood at one moment: cheap to take, and built again only if a pass is undone or somebody reads it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from segmo.passes.graph import graph_text


class _Row(NamedTuple):
    """A node as it stood; what it read are the nodes of that moment, whatever has become of them since."""

    node: Node
    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any
    meta: dict[str, Any]


def _rows_of(graph: Graph) -> list[_Row]:
    return [_Row(n, n.name, n.op, n.target, n.args, n.kwargs, n.meta.copy()) for n in graph.nodes]


class Snapshot:
    """The nodes of a graph, in order, with all that a pass may change in them.

    Taking one costs a small part of a copy of the graph, and most are thrown away: passes are seldom undone, and a
    report is seldom asked for the code of its graphs.

    Args:
        gm: owns what the graph's nodes refer to by name.
    """

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._rows = _rows_of(gm.graph)

    def is_of(self, graph: Graph) -> bool:
        """Whether the graph stands as it stood."""
        nodes = list(graph.nodes)
        return len(nodes) == len(self._rows) and all(
            node is row.node and node.target is row.target and node.args is row.args and node.kwargs is row.kwargs
            for node, row in zip(nodes, self._rows, strict=True)
        )

    def build(self) -> tuple[Graph, dict[Node, Node]]:
        """The graph once more, of new nodes, and which of these stands for which node of that moment."""
        graph = Graph(self._gm, self._gm.graph._tracer_cls)
        made: dict[Node, Node] = {}
        find: Callable[[Node], Node] = made.__getitem__
        for node, name, op, target, args, kwargs, meta in self._rows:
            args, kwargs = map_arg((args, kwargs), find)
            new = made[node] = graph.create_node(op, target, args, kwargs, name, node.type)
            new.meta = meta.copy()
            if hasattr(node, "_dynamo_source"):  # which AOT autograd wants on every input
                new._dynamo_source = node._dynamo_source
        return graph, made

    def restore(self) -> dict[Node, Node]:
        """Puts the graph back as it stood, of new nodes, and tells which of these stands for which node of that moment.

        From then on this is a snapshot of the new nodes: the next pass may have to be undone too.
        """
        graph, nodes = self.build()
        self._gm.graph = graph
        self._rows = _rows_of(graph)
        return nodes

    @functools.cached_property
    def text(self) -> str:
        """The graph as readable code."""
        text = graph_text(GraphModule(self._gm, self.build()[0]))
        self._rows = []  # nobody goes back to a graph that is being read
        return text

    def __reduce__(self) -> tuple[type[Written], tuple[str]]:
        """What goes to another process or a file is the code: a graph's nodes hold what cannot be pickled."""
        return Written, (self.text,)


class Written(Snapshot):
    """What stands for the graph is a text."""

    def __init__(self, text: str) -> None:
        self.text = text
