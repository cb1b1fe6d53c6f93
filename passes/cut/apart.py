"""A cut in which the other tokens are elsewhere, or not needed: each row has to be computed from itself alone."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from segmo.passes.cut.state import lost
from segmo.passes.cut.token_cut import TokenCut
from segmo.passes.mixers import mixes_tokens
from segmo.passes.reasons import DoesNotApply

_PRODUCTS = {torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm", "__matmul__"}
_SOFTMAX = {torch.softmax, torch.nn.functional.softmax, torch.log_softmax, "softmax", "log_softmax"}
# The count of the tokens of each expert only says how rows that were sorted by expert are laid out.
_COUNTS = {operator.getitem, torch.histc, torch.bincount}


class ApartCut(TokenCut):
    """Refuses whatever would be another result without the other tokens.

    Where tokens are dropped for good such calls simply run on those that are left (:class:`TokenCut`).
    """

    def _visit(self, node: Node, later: Sequence[Node]) -> None:
        short = [source for source in node.all_input_nodes if self.changed_dims(source)]
        if short and mixes_tokens(node):
            raise self.mixed(node)
        super()._visit(node, later)
        if any(self.changed_dims(source) for source in node.all_input_nodes):
            self._refuse_sums(node)

    def mixed(self, node: Node) -> DoesNotApply:
        """A call that carries one token's values to another."""
        return lost("a layer carries one token's values to another, and some of them are not here", node)

    def _refuse_sums(self, node: Node) -> None:
        value: Any = self.values.get(node)
        if node.target in _COUNTS or not isinstance(value, Tensor):
            return
        if not self.changed_dims(node) or self._over_tokens(node):
            raise lost("tokens are added up or picked from, and some of them are not here", node)

    def _over_tokens(self, node: Node) -> bool:
        """Whether a product or a softmax runs along a dimension of tokens."""
        if node.target in _PRODUCTS and len(node.args) > 1 and isinstance(node.args[1], Node):
            right = node.args[1]
            return self.value(right).dim() > 1 and self.value(right).dim() - 2 in self.changed_dims(right)
        if node.target in _SOFTMAX and isinstance(node.args[0], Node):
            source = node.args[0]
            dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
            return dim % self.value(source).dim() in self.changed_dims(source)
        return False
