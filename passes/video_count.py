"""How many video tokens a prompt has, from shapes alone: the budget of tokens is computed before the graph runs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from segmo.passes.graph import concrete, example

# Their result has as many elements as the operand that is not broadcast.
_ELEMENTWISE = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    torch.add, torch.sub, torch.mul, torch.div, "add", "add_", "sub", "sub_", "mul", "mul_", "div",
}  # fmt: skip
# Their result has as many elements as their first argument.
_SAME_SIZE = {
    "to", "contiguous", "clone", "float", "half", "bfloat16", "type_as", "view", "reshape", "flatten", "squeeze",
    "unsqueeze", "transpose", "permute", "detach", torch.reshape, torch.flatten,
}  # fmt: skip


def known_size(features: Node) -> Node | None:
    """The nearest tensor that ``features`` is made from element by element and whose size follows from shapes alone.

    ``features`` itself, mostly. A model that adds features to what stands at the placeholders makes a tensor of as many
    elements as the mask has flags, which only the mask's values tell; the features that are added have a shape.
    """
    seen: set[Node] = set()
    stack = [features]
    while stack:
        node = stack.pop(0)
        value = example(node)
        if node in seen or not isinstance(value, Tensor):
            continue
        seen.add(node)
        if not free_unbacked_symbols(value):
            return node
        if node.target in _SAME_SIZE and isinstance(node.args[0], Node):
            stack.append(node.args[0])
        elif node.target in _ELEMENTWISE:
            stack.extend(arg for arg in node.all_input_nodes if _whole(arg, value.dim()))
    return None


def _whole(operand: Node, rank: int) -> bool:
    """Whether an operand has a size of its own in every dimension of the result, so that it is not broadcast."""
    value = example(operand)
    return isinstance(value, Tensor) and value.dim() == rank and all(concrete(size) != 1 for size in value.shape)


def count(counted: Node, width: Any) -> int:
    """Video tokens of the whole batch in the traced call; ``width`` is the embedding's H."""
    return int(concrete(example(counted).numel())) // int(concrete(width))


def count_node(graph: Graph, counted: Node, width: Any) -> Node | int:
    """The same in every call, put at the graph's point of insertion."""
    value = example(counted)
    if not isinstance(value.numel(), torch.SymInt):
        return count(counted, width)
    numel = graph.call_function(torch.ops.aten.sym_numel.default, (counted,))
    return graph.call_function(operator.floordiv, (numel, int(concrete(width))))
