"""The second cut: from one node on, each rank computes on its own tokens of the prompt.

Same walk as :class:`segmo.passes.cut.WholeCut`. What differs: how many tokens are left is known only when the
graph runs, what needs other ranks' tokens gathers them, and what leaves the graph is put together again.

Legend: N prompt tokens, K kept tokens, L tokens of this rank.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from segmo.passes.analyse import Merge
from segmo.passes.cut import WholeCut
from segmo.passes.graph import concrete, erase_unused, example
from segmo.passes.scene_nodes import OPS


class RankCut(WholeCut):
    """Rewrites everything after the point at which tokens are dealt out to ranks.

    Every node's traced value still has the prompt's length N, whether tokens were selected before or not, so
    the walk goes from N to a made-up length N - 1, which no other size depends on.

    Args:
        packed: node of the rank's packed schedule.
        kept: node of the number of kept tokens, K.
        group: name of the process group.
        gather: whether caches are put together at the end.
        (others): as for :class:`segmo.passes.cut.TokenCut`.
    """

    def __init__(
        self,
        graph: Graph,
        index: Node,
        packed: Node,
        kept: Node,
        group: str,
        gather: bool,
        merge: Merge,
        caches: Collection[Node],
    ) -> None:
        length = int(concrete(example(merge.node).shape[1]))
        super().__init__(graph, index, index, length, length - 1, merge, caches, whole_length=kept)
        self.packed, self.group, self.gather_caches = packed, group, gather
        self.embeddings: set[Node] = set()
        with self.mode:
            self.values[packed] = torch.empty(8, dtype=torch.long)
            self.values[index] = torch.empty((1, self.new), dtype=torch.long)

    def run(self, roots: dict[Node, int], start: Node) -> None:
        """See :meth:`segmo.passes.cut.TokenCut.run`; roots along dimension 1 are embeddings, those along 2 are not."""
        self.embeddings = {root for root, dim in roots.items() if dim == 1}
        super().run(roots, start)

    def pick(self, node: Node, dim: int) -> Node:
        """Takes the tokens of this rank."""
        if node in self.embeddings:  # a video token's may be on the rank that encoded it
            arguments = (node, self.index, self.packed, self.group)
            return self.graph.call_function(OPS.rank_tokens.default, arguments)
        return super().pick(node, dim)

    def incomplete(self, node: Node) -> bool:
        """Whether features that other ranks encoded may be missing."""
        return node in self.embeddings

    def _visit(self, node: Node, later: Sequence[Node]) -> None:
        if node.target is OPS.scatter_tokens.default:  # on its way out after selection: all kept tokens are due
            source = node.args[0]
            assert isinstance(source, Node)
            node.replace_input_with(source, self.whole(source, node))
            self.values[node] = self.old_value(node)
            return
        super()._visit(node, later)

    def pick_rows(self, features: Node, mask: Node, before: Node) -> Node:
        """Rows of per-token features whose tokens are on this rank; text between frames is dealt out too."""
        arguments = (features, mask, self.index, self.packed, self.group)
        with self.graph.inserting_before(before):
            return self.graph.call_function(OPS.rank_rows.default, arguments)

    def _finish(self, output: Node) -> None:
        """Caches are put together or stay; what is N long is joined; what is replicated comes from the home rank."""

        inside = self.joined_bytes

        def mend(arg: Node) -> Any:
            if arg not in self.after or (arg in self.entire and self._differs(arg)):
                return arg
            if arg in self.caches:
                gathers = self.gather_caches or arg in self.wholes
                return self.whole(arg, output) if gathers else arg
            if self.changed_dims(arg):
                return self.whole(arg, output)
            value = example(arg)
            if isinstance(value, Tensor) and value.dtype.is_floating_point:
                return self._from_home(arg, output)
            return arg

        output.args = map_arg(output.args, mend)
        self.joined_bytes = inside
        erase_unused(node for node in reversed(self.graph.nodes) if node in self.after)

    def join(self, node: Node, dim: int, before: Node) -> Node:
        """The tokens of all ranks, in order of the prompt."""
        with self.graph.inserting_before(before):
            arguments = (node, dim, self.packed, self.whole_length, self.group)
            made = self.graph.call_function(OPS.join_tokens.default, arguments)
        made.meta.update(example_value=example(node), stack_trace=node.meta.get("stack_trace"))
        return made

    def _from_home(self, node: Node, before: Node) -> Node:
        with self.graph.inserting_before(before):
            made = self.graph.call_function(OPS.from_home.default, (node, self.packed, self.group))
        made.meta.update(example_value=example(node), stack_trace=node.meta.get("stack_trace"))
        return made
