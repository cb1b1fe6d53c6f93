"""``reuse-buffers``: results take memory of values that nobody reads again."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import Graph, GraphModule, Node

from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.effects import may_write, not_as_it_is
from segmo.passes.graph import body_named, example, is_plain
from segmo.runtime.buffers import linear_into, scatter_rows, scatter_rows_

_IN_PLACE = {operator.mul: operator.imul, operator.add: operator.iadd}
_ACTIVATIONS = {torch.nn.functional.silu}
_LINEAR = torch.nn.functional.linear
# Calls whose result is memory of its own, and whose backward pass nobody will ask for.
_FRESH = {
    _LINEAR, torch.nn.functional.embedding, torch.cat, torch.rsqrt, operator.mul, operator.add, operator.neg,
    *_ACTIVATIONS,
}  # fmt: skip
_FRESH_METHODS = {"pow", "mean"}
_CONVERSIONS = {"to", "float"}  # fresh where the dtype changes

Like = tuple[torch.dtype, tuple[str, ...]]


@dataclass(frozen=True)
class ReuseBuffers:
    """Lets results take memory that is there already.

    ``a * b``, ``a + b`` and ``silu(a)`` overwrite an operand that is read for the last time. A linear layer without
    bias writes into the result of an earlier one of the same size that is dead by then, so of the feed-forward layers
    only the first takes memory. The video's features are copied into the text's embeddings token by token.

    Eager PyTorch takes new memory for each result; on a CPU the page faults of that cost several times the arithmetic.
    Exact. Only where the graph is run as it is: inductor plans its buffers itself.

    Trap avoided: a view of the operand would see the change. So memory is overwritten only if this call is the last one
    to read it and everyone else who read it has a result of its own, and never where gradients are recorded.
    """

    name: ClassVar[str] = "reuse-buffers"
    tier: ClassVar[Tier] = Tier.EXACT

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        miss = not_as_it_is(rewrite.facts)
        if miss:
            return Outcome(misses=(miss,))
        matches = _visit(rewrite.graph) + sum(_visit_body(*alike) for alike in _bodies(rewrite.graph).items())
        return Outcome(matches=matches)


def _visit(graph: Graph) -> int:
    memory = _Memory()
    return sum(memory.visit(node) for node in list(graph.nodes))


def _bodies(graph: Graph) -> dict[GraphModule, list[Node]]:
    """Graphs that are called in a graph, and the nodes that name each."""
    found: dict[GraphModule, list[Node]] = {}
    for node in graph.find_nodes(op="get_attr"):
        body = body_named(node)
        if body is not None:
            found.setdefault(body, []).append(node)
    return found


def _visit_body(body: GraphModule, named: list[Node]) -> int:
    """The same in a body, of which a new one is made: a record of the graph as it was still has the old one."""
    graph = Graph()
    graph.output(graph.graph_copy(body.graph, {}))
    matches, renewed = _visit(graph), GraphModule(body, graph)
    for node in named:
        name = f"{node.target}_in_place"
        setattr(node.graph.owning_module, name, renewed)
        node.target = name
    return matches


@dataclass
class _Memory:
    """Whose values lie in one piece of memory, among the nodes visited so far.

    Attributes:
        sharers: all nodes of a piece of memory, by each of them. What is missing may lie anywhere.
        results: the first node of each piece that a linear layer without bias has filled, by what it is like.
    """

    sharers: dict[Node, list[Node]] = field(default_factory=dict)
    results: dict[Like, list[Node]] = field(default_factory=dict)

    def visit(self, node: Node) -> bool:
        """Lets a node take memory that is free, if there is any; nodes are visited in order."""
        if node.op not in ("call_function", "call_method") or may_write(node):
            return False
        taken = self._overwritten(node) or self._refilled(node)
        if taken is not None:
            self.sharers[node] = self.sharers[taken]
            self.sharers[node].append(node)
        elif _is_fresh(node):
            self.sharers[node] = [node]
            if _is_plain_linear(node) and (like := _like(node)):
                self.results.setdefault(like, []).append(node)
        return taken is not None

    def _overwritten(self, node: Node) -> Node | None:
        """The operand that an elementwise call overwrites from now on."""
        if _is_scatter(node):
            return self._scattered(node)
        if node.target not in _ACTIVATIONS and (node.target not in _IN_PLACE or len(node.args) != 2):
            return None
        nodes, like = (arg for arg in node.args if isinstance(arg, Node)), _like(node)
        operand = next((arg for arg in nodes if self._is_free(arg, node) and _like(arg) == like), None)
        if operand is None or like is None:
            return None
        if node.target in _ACTIVATIONS:
            node.kwargs = {**node.kwargs, "inplace": True}
        else:
            left, right = node.args
            node.target, node.args = _IN_PLACE[node.target], (operand, right if left is operand else left)
        return operand

    def _scattered(self, node: Node) -> Node | None:
        embeds: Any = node.args[0]
        free = self._is_free(embeds, node)
        node.op, node.target = "call_function", scatter_rows_ if free else scatter_rows
        return embeds if free else None

    def _refilled(self, node: Node) -> Node | None:
        """The dead result of an earlier linear layer that this one's is written into."""
        if not _is_plain_linear(node):
            return None
        like = _like(node)
        old = next(filter(self._is_free, self.results.get(like, ())), None) if like else None
        if old is not None:
            node.target, node.args, node.kwargs = linear_into, (*node.args[:2], old), {}
        return old

    def _is_free(self, operand: Node, reader: Node | None = None) -> bool:
        """Whether nobody but ``reader``, once, reads a node's memory from now on, directly or by a view.

        A node that was visited and is known reads it before, and has a result of its own or lies there itself.
        """
        if operand not in self.sharers or (reader and sum(arg is operand for arg in reader.args) != 1):
            return False
        users = (user for sharer in self.sharers[operand] for user in sharer.users)
        return all(user is reader or user in self.sharers for user in users)


def _is_scatter(node: Node) -> bool:
    return node.op == "call_method" and node.target == "masked_scatter" and len(node.args) == 3


def _is_plain_linear(node: Node) -> bool:
    if node.target is not _LINEAR or any(node.args[2:]) or node.kwargs:
        return False
    return all(isinstance(arg, Node) and is_plain(example(arg)) for arg in node.args[:2])


def _is_fresh(node: Node) -> bool:
    if node.op == "call_function":
        return node.target in _FRESH or node.target is scatter_rows
    if node.target not in _CONVERSIONS:
        return node.target in _FRESH_METHODS
    operand: Any = node.args[0]
    old, new = example(operand), example(node)
    return isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor) and old.dtype != new.dtype


def _like(node: Node) -> Like | None:
    """Dtype and size of a value, as far as was traced; None of what is not a plain tensor.

    Quantised weights and the tensors of tensor parallelism are subclasses that know which calls they can take.
    """
    value = example(node)
    return (value.dtype, tuple(map(str, value.shape))) if is_plain(value) else None
