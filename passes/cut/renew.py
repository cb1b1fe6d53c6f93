"""What stands before the cut, for those who read it behind: sizes from K, gathered tensors, and counters made again."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

import segmo.runtime.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.passes.cut.state import CutState, lost
from segmo.passes.graph import changed_in_place, concrete, depends_on_symbol_of, example

_SCALAR = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SAME_PLACE = {"to", "contiguous", "float", "clone", "detach", "type_as"}
# Their elements are all alike, so that a new one serves any tokens.
_CONSTANT = {torch.zeros, torch.ones, torch.empty, torch.full, "new_zeros", "new_ones", "new_empty", "new_full"}


class Renewal(CutState):
    """Makes for each value from before the cut the one that belongs behind it, once, in front of its first use."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gathered: dict[tuple[Node, int], Node] = {}
        self.again: dict[Node, Any] = {}

    # what is needed

    def is_length(self, size: Any) -> bool:
        """Whether a size is N itself, by its symbol."""
        return isinstance(size, torch.SymInt) and isinstance(self.symbol, torch.SymInt) and _equal(size, self.symbol)

    def counts(self, size: Any) -> bool:
        """Whether a symbolic number is computed from N."""
        if isinstance(size, (torch.SymFloat, torch.SymBool)):
            return isinstance(self.symbol, torch.SymInt) and bool(
                size.node.expr.free_symbols & self.symbol.node.expr.free_symbols
            )
        return depends_on_symbol_of(size, self.symbol)

    def renew(self, node: Node, before: Node) -> Any:
        """What takes the place of ``node``, from before the cut, in ``before``, which stands behind it.

        Raises:
            DoesNotApply: it counts the prompt in a way that is not known.
        """
        value = example(node)
        if node in self.after:
            return node
        if isinstance(value, _SCALAR):
            return self._scalar(node, before) if self.counts(value) else node
        if not isinstance(value, Tensor):
            return node
        dims = [d for d, size in enumerate(value.shape) if self.counts(size)]
        lengths = [d for d in dims if self.is_length(value.shape[d])]
        if lengths != dims or (self.is_counter(node) and (node.target in _CONSTANT or not dims)):
            return self._made_again(node, before)
        for dim in lengths:
            node = self.gather(node, dim, before)
        return node

    def is_counter(self, node: Node) -> bool:
        """Whether a tensor is made from sizes alone, one of which is computed from N."""
        scalars, stack, seen = False, [node], {node}
        while stack:
            for source in stack.pop().all_input_nodes:
                if source in seen:
                    continue
                seen.add(source)
                value = example(source)
                if isinstance(value, Tensor):
                    if source.op == "placeholder" or source in self.after:
                        return False
                    stack.append(source)
                else:
                    scalars = scalars or self.counts(value)
        return scalars and node.op in ("call_function", "call_method")

    # sizes

    def _scalar(self, node: Node, before: Node) -> Any:
        """A number that is computed from N, computed from K."""
        if self.is_length(example(node)):
            return self.size
        return self._copy(node, before)

    # tensors

    def counter(self, node: Node, before: Node) -> Node:
        """A tensor of places that count the prompt's tokens, made again for the kept ones.

        Raises:
            DoesNotApply: it comes from more than sizes.
        """
        if not isinstance(example(node), Tensor) or node in self.after:
            return node
        if self.is_counter(node):
            return self._made_again(node, before)
        if any(self.counts(size) for size in example(node).shape):
            raise lost("kept tokens are looked up by places in the whole prompt", before)
        return node

    def _made_again(self, node: Node, before: Node) -> Node:
        if node.op not in ("call_function", "call_method"):
            raise lost(f"{node.name} counts the prompt's tokens in another way than by their number", before)
        if any(changed_in_place(user) is node for user in node.users if user not in self.after):
            raise lost(f"{node.name} is written to before the cut and read behind it", before)
        made = self._copy(node, before)
        assert isinstance(made, Node)
        return made

    def _copy(self, node: Node, before: Node) -> Any:
        """The same call on renewed inputs."""
        if node in self.again:
            return self.again[node]
        if node.op not in ("call_function", "call_method"):
            raise lost(f"{node.name} is computed from the prompt's length", before)
        counter = self.is_counter(node)

        def source(arg: Node) -> Any:
            if counter and isinstance(example(arg), Tensor) and self.is_counter(arg):
                return self._copy(arg, before)
            return self.renew(arg, before)

        args, kwargs = map_arg((node.args, node.kwargs), source)
        with self.graph.inserting_before(before):
            made = self.graph.create_node(node.op, node.target, args, kwargs)
        made.meta.update(example_value=example(node), stack_trace=node.meta.get("stack_trace"))
        self.execute(made)
        self.after.add(made)
        self.again[node] = made
        return made

    def gather(self, node: Node, dim: int, before: Node) -> Node:
        """``node`` at the kept tokens along ``dim``."""
        old = example(node)
        dim %= old.dim()
        if dim == 0 and self.batch != 1:
            raise lost("tokens are counted by the first dimension, where the batch is expected", node)
        if (node, dim) not in self.gathered:
            made = self._gather_source(node, dim, before)
            if made is None:
                with self.graph.inserting_before(before):
                    made = self.pick(node, dim)
                made.meta.update(example_value=old, stack_trace=node.meta.get("stack_trace"))
                size = list(self.value(node).shape)
                size[dim] = self.new
                size[0] = self.batch if dim else self.new
                self.values[made] = self.empty(old, size)
            self.after.add(made)
            self.gathered[node, dim] = made
        return self.gathered[node, dim]

    def pick(self, node: Node, dim: int) -> Node:
        """The node that takes the kept tokens along ``dim``."""
        return self.graph.call_function(torch.ops.segmo.gather_tokens.default, (node, self.index, dim))

    def _gather_source(self, node: Node, dim: int, before: Node) -> Node | None:
        """Gathers what ``node`` was made from instead, where that is the same and shared by every layer (cos, sin)."""
        if node.op != "call_method" or node in self.after or not isinstance(node.args[0], Node):
            return None
        if any(changed_in_place(user) is node for user in node.users):  # it no longer holds what it was made from
            return None
        source = node.args[0]
        if node.target == "unsqueeze":
            added = int(node.args[1]) % example(node).dim()  # type: ignore[arg-type]  # the dimension is a number
            if added in (0, dim):
                return None
            dim -= dim > added
        elif node.target not in _SAME_PLACE:
            return None
        if dim == 0 or example(source).dim() == 0:
            return None
        shortened = self.gather(source, dim, before)
        with self.graph.inserting_before(before):
            made = self.graph.node_copy(node, lambda n: shortened if n is source else n)
        self.execute(made)
        return made


def _equal(size: torch.SymInt, other: torch.SymInt) -> bool:
    return bool(size.node.expr == other.node.expr)


def multiple(cut: CutState, now: int, node: Node) -> Node | int:
    """A length that is K, or a whole multiple of it, for a literal in ``node``."""
    if now == cut.new:
        return cut.size
    if now % cut.new:
        raise lost("a length is no multiple of the number of kept tokens", node)
    if isinstance(cut.size, int):
        return cut.size * (now // cut.new)
    with cut.graph.inserting_before(node):
        made = cut.graph.call_function(operator.mul, (cut.size, now // cut.new))
    made.meta["example_value"] = int(concrete(cut.symbol)) * (now // cut.new)
    cut.values[made] = now
    return made
