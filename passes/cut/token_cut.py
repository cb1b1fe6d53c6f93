"""The walk behind a cut, node by node, and what leaves the graph at its end."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from segmo.passes.analyse import Merge
from segmo.passes.attentions import SDPA, decoder_layer
from segmo.passes.cut.lengths import PICKS, SHAPE_CALLS, asks_for_places, mend_count, mend_shape, mend_write
from segmo.passes.cut.rows import Rows
from segmo.passes.cut.state import lost
from segmo.passes.graph import changed_in_place, concrete, downstream, erase_unused, example, is_view

ELEMENTWISE = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    operator.and_, operator.or_, operator.eq, operator.ne, operator.lt, operator.gt, operator.le, operator.ge,
    torch.add, torch.sub, torch.mul, torch.div, torch.where, torch.logical_and, torch.logical_or,
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "where", "masked_fill", "masked_fill_",
}  # fmt: skip
# What looks up places of its first argument, and where the places stand among the arguments.
_LOOKUPS: dict[Any, int] = {
    operator.getitem: 1, operator.setitem: 1, "index_select": 2, torch.index_select: 2, "gather": 2, torch.gather: 2,
    "scatter": 2, "scatter_": 2, "scatter_add": 2, "scatter_add_": 2, "index_add": 2, "index_add_": 2, "index_copy": 2,
    "index_copy_": 2, "take_along_dim": 1, torch.take_along_dim: 1,
}  # fmt: skip
_ASSERTS = (torch.ops.aten._assert_scalar.default, torch._check, torch._assert_async)


class TokenCut(Rows):
    """Rewrites everything after a cut.

    Args:
        graph: rewritten in place.
        index: (B, K) positions of the kept tokens.
        length: size of N, a node.
        old, new: N and K in the traced call.
        merge: where the video enters.
        caches: nodes that are kept in a cache; they leave the graph as short as they are.
    """

    def __init__(
        self,
        graph: Graph,
        index: Node,
        length: Node,
        old: int,
        new: int,
        merge: Merge,
        caches: Collection[Node],
    ) -> None:
        super().__init__(graph, index, old, new, merge)
        self.length = length
        self.caches = frozenset(caches)

    def run(self, roots: dict[Node, int], start: Node) -> None:
        """Gathers each root along its token dimension for all its users from ``start`` on, and follows from there.

        Args:
            roots: node -> its token dimension.
            start: the first node, in graph order, that may see shortened tensors.
        """
        order = list(self.graph.nodes)
        late = set(order[order.index(start) :])
        users = {root: [user for user in root.users if user in late and user.op != "output"] for root in roots}
        with self.graph.inserting_after(self.index):
            self.size = self.graph.call_function(torch.ops.aten.sym_size.int, (self.index, 1))
        self.size.meta["example_value"] = self.symbol
        self.values[self.size] = self.new
        self.after.add(self.size)
        first = {user for consumers in users.values() for user in consumers}
        self.after |= first | downstream(first)
        for root, dim in roots.items():
            if users[root]:
                at = min(users[root], key=order.index)
                shortened = self.gather(root, dim, at)
                for user in users[root]:
                    user.replace_input_with(root, shortened)
        self._walk(order)

    def _walk(self, order: Sequence[Node]) -> None:
        for place, node in enumerate(order):
            if node in self.after and not node._erased:
                if node.op == "output":
                    self._finish(node)
                else:
                    self._visit(node, order[place + 1 :])

    # following

    def _visit(self, node: Node, later: Sequence[Node]) -> None:
        if node.target in _ASSERTS:
            self._drop_assert(node)
            return
        if node.target in (operator.getitem, operator.setitem) and self.is_row_access(node):
            self.visit_rows(node)
            return
        self._adopt(node, later)
        if not (node.target is operator.getitem and self._keep_places(node)):
            self._renew_inputs(node)
        if node.target is SDPA:
            self._align_mask(node)
        elif node.target in SHAPE_CALLS:
            mend_shape(self, node)
        elif node.target in PICKS:
            mend_count(self, node)
        elif node.target is operator.setitem:
            mend_write(self, node)
        elif node.target in ELEMENTWISE:
            self._align(node)
        self.execute(node)

    def _renew_inputs(self, node: Node) -> None:
        """Everything from before the cut that this call reads, as it is behind it."""
        source = node.args[0] if node.args else None
        at = _LOOKUPS.get(node.target, len(node.args))
        looked_up = at < len(node.args) and isinstance(source, Node) and bool(self.changed_dims(source))
        places = set(nodes_of(node.args[at])) if looked_up else set()

        def renewed(arg: Node) -> Any:
            if arg in places and isinstance(example(arg), Tensor) and example(arg).dtype != torch.bool:
                return self.counter(arg, node)
            return self.renew(arg, node)

        args, kwargs = map_arg((node.args, node.kwargs), renewed)
        node.args, node.kwargs = args, kwargs

    def _adopt(self, node: Node, later: Sequence[Node]) -> None:
        """A tensor from before the cut that is written to behind it stands behind it from there on."""
        root = changed_in_place(node)
        if root is None or root in self.after or root.op == "placeholder":
            return
        made = self.renew(root, node)
        if made is root:
            return
        reads = {node, *later}
        if any(is_view(user) and not reads.isdisjoint(user.users) for user in root.users) or is_view(root):
            raise lost("a tensor from before the cut is written to through a view of it", node)
        behind = [user for user in root.users if user in reads]
        for user in behind:
            user.replace_input_with(root, made)
        self.after |= set(behind) | downstream(behind)

    def _align(self, node: Node) -> None:
        """Gathers operands of an elementwise op that still have the old length where another one is shortened."""
        nodes = [arg for arg in node.all_input_nodes if isinstance(self.value(arg), Tensor)]
        for short in nodes:
            rank = self.value(short).dim()
            for dim in self.changed_dims(short):
                old = self.old_shape(short)[dim]
                for other in nodes:
                    at = dim - rank  # counted from the right, as broadcasting does
                    shape = self.value(other).shape
                    if -at <= len(shape) and shape[at] == old and not self.changed_dims(other):
                        mask = self.picked.get(short) if dim == 0 else None
                        node.replace_input_with(other, self._cut_operand(other, len(shape) + at, old, mask, node))
                        if mask is not None:
                            self.check_rows(short, other, node)

    def _cut_operand(self, other: Node, dim: int, old: int, mask: Node | None, before: Node) -> Node:
        if mask is not None:
            return self.gather_rows(other, mask, before)
        if old == self.old:
            return self.gather(other, dim, before)
        raise lost("a tensor meets the shortened one in a dimension that does not count tokens", before)

    def _align_mask(self, node: Node) -> None:
        mask = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
        if isinstance(mask, Node) and not self.changed_dims(mask):
            rows = self.gather(mask, -2, node) if concrete(example(mask).shape[-2]) == self.old else mask
            both = self.gather(rows, -1, node) if concrete(example(mask).shape[-1]) == self.old else rows
            node.replace_input_with(mask, both)

    def _keep_places(self, node: Node) -> bool:
        """Who asks the decoder's result for places in the prompt gets those: NaN where the token was dropped.

        Inside the decoder an index counts the tokens that are there.
        """
        dims = asks_for_places(self, node)
        if not dims or self._inside(node):
            return False
        source = node.args[0]
        assert isinstance(source, Node)
        for dim in dims:
            source = self.scatter(source, dim, node)
        node.args = (source, node.args[1])
        return True

    def _inside(self, node: Node) -> bool:
        """Whether a call belongs to a decoder layer, or what it gives is attended to or kept in a cache afterwards."""
        return decoder_layer(node) is not None or any(
            later.target is SDPA or later in self.caches for later in (node, *downstream([node]))
        )

    def _drop_assert(self, node: Node) -> None:
        """Assertions on counts of before the cut no longer hold, and the runtime ops check the new ones."""
        condition = node.args[0]
        self.graph.erase_node(node)
        if isinstance(condition, Node):
            erase_unused([condition])

    # outputs

    def _finish(self, output: Node) -> None:
        """Caches leave the graph cut; anything else that was N long leaves it N long again."""
        output.args = map_arg(output.args, lambda arg: self._leave(arg, output))

    def _leave(self, arg: Node, output: Node) -> Node:
        if arg in self.caches:
            return arg if arg in self.after else self._shorten(arg, output)
        for dim in self.changed_dims(arg):
            if concrete(example(arg).shape[dim]) != self.old:
                raise lost("an output changed in a dimension that does not count tokens", arg)
            arg = self.scatter(arg, dim, output)
        return arg

    def _shorten(self, cache: Node, output: Node) -> Node:
        """A cache of a layer in front of the cut, at the kept tokens."""
        shape = example(cache).shape
        dims = [d for d, size in enumerate(shape) if self.is_length(size)]
        if not isinstance(self.symbol, torch.SymInt) and len(shape) == 4 and shape[-2] == self.old:
            dims = [2]
        for dim in dims:
            cache = self.gather(cache, dim, output)
        return cache

    def scatter(self, node: Node, dim: int, before: Node) -> Node:
        """``node`` at the prompt's length again along ``dim``."""
        with self.graph.inserting_before(before):
            made = self.graph.call_function(
                torch.ops.segmo.scatter_tokens.default, (node, self.index, self.length, dim)
            )
        made.meta["example_value"] = example(node)
        self.values[made] = self.old_value(node)
        self.after.add(made)
        return made


def nodes_of(argument: Any) -> list[Node]:
    """The nodes in a call's argument."""
    found: list[Node] = []

    def add(node: Node) -> Node:
        found.append(node)
        return node

    map_arg(argument, add)
    return found
