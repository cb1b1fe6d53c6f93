"""The cut: from one node on, the graph computes on the kept tokens only.

Everything that depends on the cut (the *after* side) is run again on fake tensors of concrete size, once, in order. A
tensor that is now shorter than it was when the graph was captured has followed the cut: which of its dimensions count
tokens is known from where they come from, never from comparing numbers. Two kinds of places need mending:

- a tensor from before the cut (rotary cos and sin, masks, cached keys) meets a shortened one: it is gathered along the
  dimension that meets;
- a length stands in the call itself (``view(1, 35, 4, 16)``): it is replaced where the factor comes from a shortened
  dimension.

Legend: B batch, N prompt tokens, K kept tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

import segmo.runtime.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.compat.operators import FakeTensorMode
from segmo.passes.analyse import SDPA, Attention, Merge
from segmo.passes.graph import concrete, depends_on_symbol_of, downstream, erase_unused, example
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.sizes import hint_tensor, index_of, reshaped_dims, settled_bound

_SHAPE_CALLS = {
    "view", "reshape", "expand",
    torch.reshape, torch.Tensor.view, torch.Tensor.reshape, torch.Tensor.expand,
}  # fmt: skip
_ELEMENTWISE = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    operator.and_, operator.or_, operator.eq, operator.ne, operator.lt, operator.gt, operator.le, operator.ge,
    torch.add, torch.sub, torch.mul, torch.div, torch.where, torch.logical_and, torch.logical_or,
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "where", "masked_fill", "masked_fill_",
}  # fmt: skip
_SAME_PLACE = {"to", "contiguous", "float", "clone", "detach", "type_as"}
_WRITES = {"setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior"}
_ASSERTS = (torch.ops.aten._assert_scalar.default, torch._check)


def _lost(detail: str, node: Node | None = None) -> DoesNotApply:
    return DoesNotApply(Miss.of("cannot-follow", detail, node))


def _writes(user: Node, node: Node) -> bool:
    """Whether ``user`` changes ``node``'s tensor in place."""
    if not user.args or user.args[0] is not node:
        return False
    name = getattr(user.target, "__name__", str(user.target))
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))


class TokenCut:
    """Rewrites everything after a cut.

    Args:
        graph: rewritten in place.
        index: (B, K) positions of the kept tokens.
        length: size of N, a node.
        old, new: N and K in the traced call.
        merge: where the video enters.
        attentions: the decoder's attention calls; their keys and values in the graph's outputs are caches.
    """

    def __init__(
        self,
        graph: Graph,
        index: Node,
        length: Node,
        old: int,
        new: int,
        merge: Merge,
        attentions: Sequence[Attention],
    ) -> None:
        self.graph = graph
        self.index = index
        self.length = length
        self.old, self.new = old, new
        self.size: Node | int = new
        self.after: set[Node] = set()
        self.values: dict[Node, Any] = {}
        self.gathered: dict[tuple[Node, int], Node] = {}
        self.masks: dict[Node, Node] = {}
        self.picked: dict[Node, Node] = {}
        features = example(merge.features)
        self.unknown = int(concrete(features.numel())) // int(concrete(features.shape[-1]))
        self.caches = {node for a in attentions for node in (a.key, a.value)}
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        video = example(merge.node)
        self.symbol = video.shape[1]
        self.batch = int(concrete(video.shape[0]))

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
        self.values[self.size] = self.new
        first = {user for consumers in users.values() for user in consumers}
        self.after = first | downstream(first)
        for root, dim in roots.items():
            if users[root]:
                at = min(users[root], key=order.index)
                shortened = self._gather(root, dim, at)
                for user in users[root]:
                    user.replace_input_with(root, shortened)
        self._walk(order)

    def _walk(self, order: Sequence[Node]) -> None:
        for node in order:
            if node in self.after and not node._erased:
                if node.op == "output":
                    self._finish(node)
                else:
                    self._visit(node)

    # values

    def old_value(self, node: Node) -> Any:
        """What a node's value was in the traced call, with concrete sizes."""
        return pytree.tree_map(self._concrete, example(node))

    def _concrete(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            with self.mode:
                return hint_tensor(value, self.unknown)
        return concrete(value)

    def value(self, node: Node) -> Any:
        """A node's value after the cut, or its old one if nothing in it has changed."""
        if node not in self.values:
            self.values[node] = self.old_value(node)
        return self.values[node]

    def changed_dims(self, node: Node) -> list[int]:
        """Dimensions of a node's tensor that have another size than in the traced call."""
        if node not in self.after and node not in self.gathered.values() and node not in self.masks.values():
            return []
        value, old = self.value(node), example(node)
        if not isinstance(value, Tensor) or not isinstance(old, Tensor):
            return []
        return [d for d, size in enumerate(self._old_shape(node)) if value.shape[d] != size]

    def _old_shape(self, node: Node) -> list[int]:
        """A tensor's sizes in the traced call."""
        return list(self.old_value(node).shape)

    # gathering

    def _gather(self, node: Node, dim: int, before: Node) -> Node:
        """``node`` at the kept tokens along ``dim``; made once per node, in front of its first use."""
        old = example(node)
        dim %= old.dim()
        if dim == 0:
            raise _lost("tokens are counted by the first dimension, where the batch is expected", node)
        if (node, dim) not in self.gathered:
            made = self._gather_source(node, dim, before)
            if made is None:
                with self.graph.inserting_before(before):
                    made = self._pick(node, dim)
                made.meta.update(example_value=old, stack_trace=node.meta.get("stack_trace"))
                size = list(self.value(node).shape)
                size[dim] = self.new
                size[0] = self.batch
                with self.mode:
                    self.values[made] = torch.empty(size, dtype=old.dtype, device=old.device)
            self.gathered[node, dim] = made
        return self.gathered[node, dim]

    def _pick(self, node: Node, dim: int) -> Node:
        return self.graph.call_function(torch.ops.segmo.gather_tokens.default, (node, self.index, dim))

    def _gather_source(self, node: Node, dim: int, before: Node) -> Node | None:
        """Gathers what ``node`` was made from instead, where that is the same and shared by every layer (cos, sin)."""
        if node.op != "call_method" or node in self.after or not isinstance(node.args[0], Node):
            return None
        if any(_writes(user, node) for user in node.users):  # it no longer holds what it was made from
            return None
        source = node.args[0]
        if node.target == "unsqueeze":
            added = int(node.args[1]) % example(node).dim()  # type: ignore[arg-type]  # the dimension is a number
            if added in (0, dim):
                return None
            dim -= dim > added
        elif node.target not in _SAME_PLACE:
            return None
        shortened = self._gather(source, dim, before)
        with self.graph.inserting_before(before):
            made = self.graph.node_copy(node, lambda n: shortened if n is source else n)
        self._execute(made)
        return made

    def _gather_rows(self, features: Node, mask: Node, before: Node) -> Node:
        """Of features with a row for each token that ``mask`` picks, (R, H), the rows of the kept tokens."""
        rows, *rest = self.value(features).shape
        with self.graph.inserting_before(before):
            made = self.graph.call_function(torch.ops.segmo.gather_rows.default, (features, mask, self.index))
        old = example(features)
        made.meta.update(example_value=old)
        self.gathered[features, 0] = made
        with self.mode:
            self.values[made] = torch.empty(
                [rows - self.batch * (self.old - self.new), *rest], dtype=old.dtype, device=old.device
            )
        return made

    def _check_rows(self, picked: Node, features: Node, before: Node) -> None:
        """States that as many rows are picked as features are kept, which a compiler cannot know from shapes."""
        sym_size = torch.ops.aten.sym_size.int
        with self.graph.inserting_before(before):
            counts = [self.graph.call_function(sym_size, (n, 0)) for n in (picked, self.gathered[features, 0])]
            equal = self.graph.call_function(operator.eq, tuple(counts))
            self.graph.call_function(torch._check, (equal,))

    # following

    def _visit(self, node: Node) -> None:
        if node.target in _ASSERTS:
            self._drop_assert(node)
            return
        if node.target in (operator.getitem, operator.setitem) and self._is_row_access(node):
            self._visit_rows(node)
            return
        if node.target is SDPA:
            self._align_mask(node)
        elif node.target in _SHAPE_CALLS:
            self._mend_shape(node)
        elif node.target in _ELEMENTWISE:
            self._align(node, node.args)
        elif node.target is operator.getitem:
            self._mend_slices(node)
        self._refuse_lengths(node)
        self._execute(node)
        self._refuse_reductions(node)

    def _refuse_reductions(self, node: Node) -> None:
        """A sum or a choice over tokens would be another one without the dropped ones."""
        if node.target is operator.getitem or not isinstance(self.values[node], Tensor) or self.changed_dims(node):
            return
        if any(self.changed_dims(source) for source in node.all_input_nodes):
            raise _lost("tokens are added up or picked from, and some of them are dropped", node)

    def _execute(self, node: Node) -> None:
        args, kwargs = map_arg((node.args, node.kwargs), self.value)
        target: Callable[..., Any]
        try:
            with self.mode:
                if node.op == "call_method":
                    self.values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                elif node.op == "call_function":
                    target = node.target  # type: ignore[assignment]  # callable, for this kind of node
                    self.values[node] = target(*args, **kwargs)
                else:
                    raise _lost(f"{node.op} nodes are not expected here", node)
        except DoesNotApply:
            raise
        except Exception as error:  # any op may refuse the new size in its own way
            raise _lost(f"{type(error).__name__}: {error}", node) from error

    def _align(self, node: Node, operands: Sequence[Any]) -> None:
        """Gathers operands of an elementwise op that still have the old length where another one is shortened."""
        nodes = [arg for arg in operands if isinstance(arg, Node) and isinstance(self.value(arg), Tensor)]
        for short in nodes:
            rank = self.value(short).dim()
            for dim in self.changed_dims(short):
                old = self._old_shape(short)[dim]
                for other in nodes:
                    at = dim - rank  # counted from the right, as broadcasting does
                    shape = self.value(other).shape
                    if -at <= len(shape) and shape[at] == old and not self.changed_dims(other):
                        mask = self.picked.get(short) if dim == 0 else None
                        node.replace_input_with(other, self._cut_operand(other, len(shape) + at, old, mask, node))
                        if mask is not None:
                            self._check_rows(short, other, node)

    def _cut_operand(self, other: Node, dim: int, old: int, mask: Node | None, before: Node) -> Node:
        if mask is not None:
            return self._gather_rows(other, mask, before)
        if old == self.old:
            return self._gather(other, dim, before)
        raise _lost("a tensor meets the shortened one in a dimension that does not count tokens", before)

    def _align_mask(self, node: Node) -> None:
        mask = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
        if isinstance(mask, Node) and not self.changed_dims(mask):
            rows = self._gather(mask, -2, node) if concrete(example(mask).shape[-2]) == self.old else mask
            both = self._gather(rows, -1, node)
            node.replace_input_with(mask, both)

    def _mend_shape(self, node: Node) -> None:
        source = node.args[0]
        if not isinstance(source, Node) or not self.changed_dims(source):
            return
        flat = len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
        lengths = list(node.args[1]) if flat else list(node.args[1:])  # type: ignore[arg-type]  # flat: a list
        old_in = [int(concrete(s)) for s in example(source).shape]
        new_in, old_out = list(self.value(source).shape), [int(concrete(s)) for s in example(node).shape]
        if node.target in ("expand", torch.Tensor.expand):
            pad = len(old_out) - len(old_in)
            new_out = [
                new_in[d - pad] if d >= pad and old_in[d - pad] != new_in[d - pad] else size
                for d, size in enumerate(old_out)
            ]
        else:
            try:
                new_out = reshaped_dims(old_in, new_in, old_out)
            except ValueError as error:
                raise _lost(str(error), node) from error
        for d, (before, now) in enumerate(zip(old_out, new_out, strict=True)):
            if before != now and lengths[d] != -1:
                lengths[d] = self._length(now, node)
        node.args = (source, tuple(lengths)) if flat else (source, *lengths)

    def _length(self, now: int, node: Node) -> Node | int:
        """A length that is K, or a whole multiple of it."""
        if now == self.new:
            return self.size
        if now % self.new:
            raise _lost("a length is no multiple of the number of kept tokens", node)
        if isinstance(self.size, int):
            return self.size * (now // self.new)
        with self.graph.inserting_before(node):
            made = self.graph.call_function(operator.mul, (self.size, now // self.new))
        self.values[made] = now
        return made

    def _mend_slices(self, node: Node) -> None:
        """A slice that ends at the prompt's length ends at K."""
        source = node.args[0]
        if not isinstance(source, Node) or not self.changed_dims(source):
            return
        for dim in self.changed_dims(source):
            item = index_of(node.args[1], dim, example(source).dim())
            if not self._means_the_same(item):  # asks for places in the prompt: NaN where they were dropped
                source = self._scatter(source, dim, node)
        if source is not node.args[0]:
            node.args = (source, node.args[1])
            return

        def mend(arg: Node) -> Node | int:
            value = example(arg)
            exact = isinstance(value, torch.SymInt) and bool(value == self.symbol)
            return self.size if exact else arg

        node.args = (source, map_arg(node.args[1], mend))

    def _means_the_same(self, item: Any) -> bool:
        """Whether an index asks a shortened dimension for all its tokens, or for the last one, which is never dropped.

        Any other counts places of the whole prompt.
        """
        if not isinstance(item, slice):
            return isinstance(item, int) and item == -1
        start, stop = settled_bound(item.start), settled_bound(item.stop)
        whole = (start is None or (isinstance(start, int) and start == 0)) and (
            stop is None or bool(stop == self.symbol)
        )
        return item.step in (None, 1) and (whole or (isinstance(start, int) and start == -1 and stop is None))

    def _refuse_lengths(self, node: Node) -> None:
        for arg in node.all_input_nodes:
            if arg not in self.values and depends_on_symbol_of(example(arg), self.symbol):
                uses_old = node.target not in _SHAPE_CALLS and node.target is not operator.getitem
                if uses_old:
                    raise _lost(f"{arg.name} is computed from the prompt's length", node)

    # rows picked by a mask (deepstack)

    def _is_row_access(self, node: Node) -> bool:
        source, key = node.args[0], node.args[1]
        first = key[0] if isinstance(key, (tuple, list)) and key else key
        return (
            isinstance(source, Node)
            and bool(self.changed_dims(source))
            and isinstance(first, Node)
            and isinstance(example(first), Tensor)
            and example(first).dtype == torch.bool
        )

    def _visit_rows(self, node: Node) -> None:
        source, key = node.args[0], node.args[1]
        mask = key[0] if isinstance(key, (tuple, list)) else key
        assert isinstance(source, Node)
        assert isinstance(mask, Node)
        if mask not in self.masks.values():
            if [concrete(s) for s in example(mask).shape] != [self.batch, self.old]:
                raise _lost("rows are picked by a mask that is not one flag per token", node)
            if mask not in self.masks:
                self.masks[mask] = self._gather(mask, 1, node)
            node.replace_input_with(mask, self.masks[mask])
        if node.target is operator.setitem:
            self.values[node] = None
            return
        self.picked[node] = mask
        node.meta.pop("unbacked_bindings", None)  # the number of rows is another one than Dynamo has bound
        old = self.old_value(node)
        with self.mode:
            left = old.shape[0] - self.batch * (self.old - self.new)
            self.values[node] = torch.empty([left, *old.shape[1:]], dtype=old.dtype, device=old.device)

    def _drop_assert(self, node: Node) -> None:
        """Assertions on counts of before the cut no longer hold, and the runtime ops check the new ones."""
        condition = node.args[0]
        self.graph.erase_node(node)
        if isinstance(condition, Node):
            erase_unused([condition])

    # outputs

    def _finish(self, output: Node) -> None:
        """Caches leave the graph cut; anything else that was N long leaves it N long again."""

        def mend(arg: Node) -> Node:
            if arg in self.caches and not self.changed_dims(arg) and arg not in self.after:
                return self._gather(arg, -2, output)
            dims = [] if arg in self.caches else self.changed_dims(arg)
            for dim in dims:
                if concrete(example(arg).shape[dim]) != self.old:
                    raise _lost("an output changed in a dimension that does not count tokens", arg)
                arg = self._scatter(arg, dim, output)
            return arg

        output.args = map_arg(output.args, mend)

    def _scatter(self, node: Node, dim: int, before: Node) -> Node:
        with self.graph.inserting_before(before):
            made = self.graph.call_function(
                torch.ops.segmo.scatter_tokens.default, (node, self.index, self.length, dim)
            )
        made.meta["example_value"] = example(node)
        return made
