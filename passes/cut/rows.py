"""Rows picked by a mask with one flag per token: features that a model adds at its video tokens (deepstack)."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Node

from segmo.passes.cut.renew import Renewal
from segmo.passes.cut.state import lost
from segmo.passes.graph import concrete, example


class Rows(Renewal):
    """Follows ``x[mask]`` and ``x[mask] = y``."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.masks: dict[Node, Node] = {}
        self.picked: dict[Node, Node] = {}

    def is_row_access(self, node: Node) -> bool:
        """Whether a call picks rows by a mask made before the cut."""
        source, key = node.args[0], node.args[1]
        first = key[0] if isinstance(key, (tuple, list)) and key else key
        return (
            isinstance(source, Node)
            and bool(self.changed_dims(source))
            and isinstance(first, Node)
            and isinstance(example(first), Tensor)
            and example(first).dtype == torch.bool
            and (first not in self.after or first in self.masks.values())
        )

    def visit_rows(self, node: Node) -> None:
        """Gathers the mask; what is picked has as many rows as tokens that the mask flags are kept."""
        key = node.args[1]
        mask = key[0] if isinstance(key, (tuple, list)) else key
        assert isinstance(mask, Node)
        if mask not in self.masks.values():
            if [concrete(s) for s in example(mask).shape] != [self.batch, self.old]:
                raise lost("rows are picked by a mask that is not one flag per token", node)
            if mask not in self.masks:
                self.masks[mask] = self.gather(mask, 1, node)
            node.replace_input_with(mask, self.masks[mask])
        if node.target is operator.setitem:
            self.values[node] = None
            return
        self.picked[node] = self.masks.get(mask, mask)
        node.meta.pop("unbacked_bindings", None)  # the number of rows is another one than Dynamo has bound
        old = self.old_value(node)
        self.values[node] = self.empty(old, [self._kept_rows(old.shape[0]), *old.shape[1:]])

    def _kept_rows(self, rows: int) -> int:
        return rows - self.batch * (self.old - self.new)

    def gather_rows(self, features: Node, mask: Node, before: Node) -> Node:
        """Of features with a row for each token that ``mask`` picks, (R, H), the rows of the kept tokens."""
        rows, *rest = self.value(features).shape
        made = self.pick_rows(features, self._whole_mask(mask), before)
        old = example(features)
        made.meta.update(example_value=old)
        self.gathered[features, 0] = made
        self.after.add(made)
        self.values[made] = self.empty(old, [self._kept_rows(rows), *rest])
        return made

    def pick_rows(self, features: Node, mask: Node, before: Node) -> Node:
        """The node that takes the kept rows."""
        with self.graph.inserting_before(before):
            return self.graph.call_function(torch.ops.segmo.gather_rows.default, (features, mask, self.index))

    def _whole_mask(self, mask: Node) -> Node:
        """The mask of the whole prompt that a gathered one was made from."""
        return next((whole for whole, kept in self.masks.items() if kept is mask), mask)

    def check_rows(self, picked: Node, features: Node, before: Node) -> None:
        """States that as many rows are picked as features are kept, which a compiler cannot know from shapes."""
        sym_size = torch.ops.aten.sym_size.int
        with self.graph.inserting_before(before):
            counts = [self.graph.call_function(sym_size, (n, 0)) for n in (picked, self.gathered[features, 0])]
            equal = self.graph.call_function(operator.eq, tuple(counts))
            self.graph.call_function(torch._check, (equal,))
