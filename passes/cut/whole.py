"""A cut in which the other tokens are elsewhere and can be fetched: what needs them runs on all of them.

A call that :class:`ApartCut` would refuse stands as it was before this cut: it reads all tokens, put together from
everywhere, and of what it gives the rows that are here are taken. So a window, an index, a convolution or a recurrence
computes what it computes without the cut, by the model's own code. Attention with a mask of its own needs all keys
and values, and its mask's rows for the tokens that are here.

What is put together is as little as the graph allows: a tensor that was made from whole ones by elementwise steps is
made so again, keys are put together before they are repeated for query heads, and everything once.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from segmo.passes.attentions import SDPA, sdpa_arguments
from segmo.passes.cut.apart import PRODUCTS, ApartCut
from segmo.passes.cut.lengths import asks_for_places
from segmo.passes.cut.state import lost
from segmo.passes.cut.token_cut import nodes_of
from segmo.passes.graph import changed_in_place, concrete, example, library_of, writers_of
from segmo.passes.mixers import mixes_tokens
from segmo.passes.reasons import DoesNotApply

# They lay the same values out in another way, or more often.
_LAYOUT = {"transpose", "permute", "view", "reshape", "expand", "unsqueeze", "squeeze", "contiguous", "flatten"}
_COSTLY = {*PRODUCTS, torch.nn.functional.linear, torch.einsum, torch.nn.functional.embedding, torch._grouped_mm, SDPA}


class WholeCut(ApartCut):
    """Runs what needs the other tokens on all of them; see the module.

    Args:
        whole_length: node of the length that all tokens have together.
        (others): as for :class:`segmo.passes.cut.TokenCut`.

    Attributes:
        joined_bytes: of one token's values that are put together inside of the layers.
    """

    def __init__(self, *args: Any, whole_length: Node) -> None:
        super().__init__(*args)
        self.whole_length = whole_length
        self.given: dict[Node, tuple[Any, Any]] = {}  # what a node read before this cut
        self.wholes: dict[Node, Node] = {}  # of a node with the tokens here, the one with all of them
        self.entire: set[Node] = set()  # nodes behind the cut that have all tokens
        self.undealt: set[Node] = set()  # of these, those of which there is none with the tokens here
        self.cheap: set[Node] = set()  # made elementwise from what there are whole ones of
        self.joined_bytes = 0

    def join(self, node: Node, dim: int, before: Node) -> Node:
        """All tokens of a tensor that has those here along ``dim``."""
        raise NotImplementedError

    # --- the walk

    def _visit(self, node: Node, later: Sequence[Node]) -> None:
        given = self.given[node] = (node.args, node.kwargs)
        needs = self.carries(node) or not self.undealt.isdisjoint(node.all_input_nodes)
        try:
            super(ApartCut, self)._visit(node, later)
        except DoesNotApply:  # with fewer tokens the model's code would be another, with all it is not
            node.args, node.kwargs = given
            if not isinstance(self.symbol, torch.SymInt):
                raise
            self.values[node] = self._resized(node)
            needs = True
        if node._erased:
            return
        if needs or self.needs_others(node):
            self._run_whole(node, later, *given)
        elif self._is_cheap(node):
            self.cheap.add(node)

    def carries(self, node: Node) -> bool:
        """Also attention that was not replaced, and an index of places in the prompt."""
        if node.target is SDPA:
            return True
        return super().carries(node) or (node.target is operator.getitem and bool(asks_for_places(self, node)))

    def gather(self, node: Node, dim: int, before: Node) -> Node:
        """As in :class:`segmo.passes.cut.TokenCut`; what it was taken from is known."""
        made = super().gather(node, dim, before)
        if made not in self.wholes and not self.incomplete(node):
            self.wholes[made] = self.wholes.get(node, node)
            if not self._written(self.wholes[made]):
                self.cheap.add(made)
        return made

    def incomplete(self, node: Node) -> bool:
        """Whether a node from before the cut lacks what is elsewhere."""
        return False

    def scatter(self, node: Node, dim: int, before: Node) -> Node:
        """What is elsewhere is not gone."""
        made: Node = self.whole(node, before)
        return made

    def _resized(self, node: Node) -> Any:
        """What a node's value would be in size, with as many tokens as stand for those that are here."""

        def resized(value: Any) -> Any:
            if isinstance(value, Tensor) and any(map(self.counts, value.shape)):
                return self.empty(value, [resized(size) for size in value.shape])
            if isinstance(value, torch.SymInt) and self.counts(value):
                size = value.node.expr.subs(self.symbol.node.expr, self.new)
                return int(size) if size.is_number else int(concrete(value)) - 1  # other than it was
            return self._concrete(value)

        return pytree.tree_map(resized, example(node))

    def _run_whole(self, node: Node, later: Sequence[Node], args: Any, kwargs: Any) -> None:
        """Has a call read all tokens, and its users those that are here."""
        if changed_in_place(node) is not None:
            args = (self._write_whole(node, later, args[0]), *args[1:])
        if node.target is SDPA and self._attend_rows(node, args, kwargs):
            return
        node.args, node.kwargs = map_arg((args, kwargs), lambda arg: self.whole(arg, node))
        self.entire.add(node)
        if isinstance(self.symbol, torch.SymInt):
            self.values[node] = self._resized(node)
        if not self._differs(node):
            return  # such as a state, which is the same everywhere
        dims, value = self.changed_dims(node), self.values[node]
        old = self.old_shape(node) if dims else []
        if not self._counts_tokens(node) or any((old[d], value.shape[d]) != (self.old, self.new) for d in dims):
            self.undealt.add(node)
            return
        made = node
        for dim in dims:
            made = self.gather(made, dim, node.next if made is node else made.next)
        chain = {made, *made.all_input_nodes}
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in chain)
        if node in self.caches:
            self.caches |= {made}

    def _write_whole(self, node: Node, later: Sequence[Node], root: Node) -> Node:
        """Has a tensor written to that was made whole; from there on its users read it whole too."""
        whole = self.wholes.get(root, root)
        if whole is not root and whole in self.given:
            self.undealt.add(whole)
            for user in [user for user in root.users if user is node or user in later]:
                user.replace_input_with(root, whole)
        if whole not in self.undealt:
            raise lost("a tensor is written to in a way that needs tokens that are not here", node)
        return whole

    def _attend_rows(self, node: Node, args: Any, kwargs: Any) -> bool:
        """Has the rows that are here attend to all keys, where a mask says which of them each row sees."""
        now, names = sdpa_arguments(node), ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        before = {**dict(zip(names, args, strict=False)), **kwargs}
        query, mask = before["query"], before.get("attn_mask")
        if not isinstance(mask, Node) or query in self.undealt or self.changed_dims(query) != [2]:
            return False
        if self.old_shape(mask)[-2] != self.old:
            return False
        rows = self.gather(self.whole(mask, node), -2, node)
        key, value = (self.whole(before[name], node) for name in ("key", "value"))
        node.args, node.kwargs = (), {**now, "key": key, "value": value, "attn_mask": rows}
        return True

    # --- whole tensors

    def whole(self, node: Any, before: Node) -> Any:
        """The value that a node had before this cut, with all tokens.

        Args:
            before: where it is needed.

        Raises:
            DoesNotApply: it cannot be put together.
        """
        if node not in self.after or node in self.entire:
            return node
        if node in self.wholes and not self._written(node):
            return self.wholes[node]
        if not self._differs(node):
            return node
        value = example(node)
        if self.is_length(value) or (isinstance(value, int) and value == self.old):
            return self.whole_length
        dims = self.changed_dims(node)
        single = len(dims) == 1 and self.old_shape(node)[dims[0]] == self.old
        layout = node.op == "call_method" and node.target in _LAYOUT and node in self.given
        if single and not layout and node not in self.cheap:
            made = self.join(node, dims[0], before)
            self.joined_bytes += self._token_bytes(node, dims[0])
        else:
            made = self._as_before(node, before)
        self.after.add(made)
        self.entire.add(made)
        self.values[made] = self.old_value(node)
        if not self._written(node):
            self.wholes[node] = made
        return made

    def _as_before(self, node: Node, before: Node) -> Node:
        """The call of a node once more, on all tokens."""
        sources = [node, *nodes_of(self.given.get(node, ()))]
        if node not in self.given or changed_in_place(node) is not None or any(map(self._written, sources)):
            raise lost("a layer needs tokens that are not here, and they cannot be put together", node)
        args, kwargs = map_arg(self.given[node], lambda arg: self.whole(arg, before))
        with self.graph.inserting_before(before):
            made = self.graph.create_node(node.op, node.target, args, kwargs)
        made.meta.update(example_value=example(node), stack_trace=node.meta.get("stack_trace"))
        return made

    def _token_bytes(self, node: Node, dim: int) -> int:
        value: Tensor = self.old_value(node)
        return value.numel() // value.shape[dim] * value.element_size()

    def _is_cheap(self, node: Node) -> bool:
        """Whether a call is an elementwise step, or a view, of what there are whole ones of."""
        if node.op not in ("call_function", "call_method") or node.target in _COSTLY or mixes_tokens(node):
            return False
        if library_of(node) == "segmo" or self._written(node):
            return False
        changed = [source for source in nodes_of(self.given[node]) if self._differs(source)]
        return bool(changed) and changed_in_place(node) is None and self.cheap.issuperset(changed)

    def _written(self, node: Node) -> bool:
        """Whether a call changes a node's tensor in place, so that it has several values."""
        return next(writers_of(node), None) is not None

    def _counts_tokens(self, node: Node) -> bool:
        """Whether a node's tensor has tokens in some dimensions, one by one, and no other size that depends on them."""
        value = example(node)
        if not isinstance(value, Tensor):
            return False
        if not isinstance(self.symbol, torch.SymInt):
            return bool(self.changed_dims(node))
        counting = [size for size in value.shape if self.counts(size)]
        return bool(counting) and all(map(self.is_length, counting))

    def _differs(self, node: Node) -> bool:
        """Whether a node has another value, or one of another size, than before this cut."""
        if node not in self.values:
            return False
        if node in self.after and any(self.counts(size) for size in _sizes(example(node))):
            return True
        old, new = (pytree.tree_leaves(value) for value in (self.old_value(node), self.values[node]))
        return any(_size(a) != _size(b) for a, b in zip(old, new, strict=False))


def _sizes(value: Any) -> list[Any]:
    """The numbers in a value: sizes of its tensors, and those that it holds."""
    leaves = pytree.tree_leaves(value)
    return [size for leaf in leaves for size in (leaf.shape if isinstance(leaf, Tensor) else (leaf,))]


def _size(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value
