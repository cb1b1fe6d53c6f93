"""A cut in which the other tokens are elsewhere, or not needed: each row has to be computed from itself alone."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from segmo.passes.cut.state import lost
from segmo.passes.cut.token_cut import ELEMENTWISE, TokenCut
from segmo.passes.graph import example, op_name
from segmo.passes.mixers import mixes_tokens
from segmo.passes.reasons import DoesNotApply

PRODUCTS = {torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm", "__matmul__"}
_SOFTMAX = {torch.softmax, torch.nn.functional.softmax, torch.log_softmax, "softmax", "log_softmax"}
_SCALAR = (torch.SymInt, torch.SymFloat, torch.SymBool)
_VALUES = ELEMENTWISE | {operator.pow, operator.floordiv, operator.mod, torch.pow, torch.remainder, "pow", "remainder"}
# The count of the tokens of each expert only says how rows that were sorted by expert are laid out.
_COUNTS = {operator.getitem, torch.histc, torch.bincount}


class ApartCut(TokenCut):
    """Refuses whatever would be another result without the other tokens.

    Where tokens are dropped for good such calls simply run on those that are left (:class:`TokenCut`).
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.flagged: set[Node] = set()  # has a row for each token that a mask flags, not for each token

    def _visit(self, node: Node, later: Sequence[Node]) -> None:
        if self.carries(node):
            raise self.mixed(node)
        super()._visit(node, later)
        if not node._erased and self.needs_others(node):
            raise lost("tokens are added up or picked from, and some of them are not here", node)

    def renew(self, node: Node, before: Node) -> Any:
        """As in :class:`TokenCut`. As a value, not a size, the number of tokens stays that of all of them."""
        if before.target in _VALUES and isinstance(example(node), _SCALAR) and node not in self.after:
            return node
        return super().renew(node, before)

    def mixed(self, node: Node) -> DoesNotApply:
        """A call that carries one token's values to another."""
        return lost("a layer carries one token's values to another, and some of them are not here", node)

    def carries(self, node: Node) -> bool:
        """Whether a call, before it was followed, is one that carries one token's values to another by its nature."""
        return mixes_tokens(node) and any(self.changed_dims(source) for source in node.all_input_nodes)

    def needs_others(self, node: Node) -> bool:
        """Whether a call that was followed adds up tokens, picks some of them, or lays them out in another way."""
        given = [self.changed_dims(source) for source in node.all_input_nodes]
        if node in self.picked or not self.flagged.isdisjoint(node.all_input_nodes):
            self.flagged.add(node)
        if not any(given):
            return False
        if self._over_tokens(node) or self._shifts(node):
            return True
        leaves = self._leaves(node)
        if node.target in _COUNTS:
            return any(dims and not even for dims, even in leaves)
        return any(dims < max(map(len, given)) or not even for dims, even in leaves)

    def _leaves(self, node: Node) -> list[tuple[int, bool]]:
        """Of each tensor that a call gives, its dimensions that count tokens, and whether they do so evenly."""
        old, new = pytree.tree_leaves(self.old_value(node)), pytree.tree_leaves(self.values.get(node))
        found = []
        for before, now in zip(old, new, strict=False):
            if isinstance(before, Tensor) and isinstance(now, Tensor) and before.dim() == now.dim():
                sizes = [(a, b) for a, b in zip(before.shape, now.shape, strict=True) if a != b]
                even = node in self.flagged or all(a * self.new == b * self.old for a, b in sizes)
                found.append((len(sizes), even))
        return found

    def _over_tokens(self, node: Node) -> bool:
        """Whether a product or a softmax runs along a dimension of tokens."""
        if node.target in PRODUCTS and len(node.args) > 1 and isinstance(node.args[1], Node):
            right = node.args[1]
            return self.value(right).dim() > 1 and self.value(right).dim() - 2 in self.changed_dims(right)
        if node.target in _SOFTMAX and isinstance(node.args[0], Node):
            source = node.args[0]
            dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
            return dim % self.value(source).dim() in self.changed_dims(source)
        return False

    def _shifts(self, node: Node) -> bool:
        """Whether a padding shifts tokens to other places."""
        if op_name(node) != "pad" or not isinstance(node.args[0], Node):
            return False
        amounts: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        last = self.value(node.args[0]).dim() - 1
        padded = {last - place // 2 for place, amount in enumerate(amounts) if isinstance(amount, Node) or amount}
        return not padded.isdisjoint(self.changed_dims(node.args[0]))
