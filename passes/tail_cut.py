"""The last cut: behind the last attention, the graph computes the last token's row only."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from segmo.passes.analyse import Merge
from segmo.passes.cut import ApartCut
from segmo.passes.graph import concrete, downstream, example
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.scene_nodes import OPS


def every_row(node: Node) -> DoesNotApply:
    """Somebody reads other rows of the last layer than the last one."""
    return DoesNotApply(Miss.of("every-row", node=node))


class TailCut(ApartCut):
    """Rewrites what is computed from the last attention's output, once that has one row.

    Same walk as :class:`segmo.passes.cut.ApartCut`. What differs: the kept row is known beforehand, and nothing can be
    put back to the prompt's length.

    Args:
        graph: rewritten in place.
        merge: where the video enters.
        caches: nodes that are kept in a cache, which needs every row.
    """

    def __init__(self, graph: Graph, merge: Merge, caches: Collection[Node]) -> None:
        length = int(concrete(example(merge.node).shape[1]))
        super().__init__(graph, merge.node, merge.node, length, 1, merge, caches)

    def follow(self, attention: Node) -> None:
        """Mends what comes after ``attention``, whose traced value has all rows and which now gives one."""
        old = example(attention)
        size = [concrete(s) for s in old.shape]
        self.values[attention] = self.empty(old, [*size[:2], self.new, size[3]])
        self.after = {attention, *downstream([attention])}
        kept = next((cache for cache in self.caches if cache in self.after), None)
        if kept is not None:
            raise every_row(kept)
        order = list(self.graph.nodes)
        self._walk(order[order.index(attention) + 1 :])

    def _visit(self, node: Node, later: Sequence[Node]) -> None:
        # The first two are on their way to the prompt's length.
        if node.target in (OPS.scatter_tokens.default, OPS.join_tokens.default):
            raise every_row(node)
        super()._visit(node, later)

    def mixed(self, node: Node) -> DoesNotApply:
        """A layer behind the last attention that needs every row."""
        return every_row(node)

    def visit_rows(self, node: Node) -> None:
        """Features are added at the video's tokens."""
        raise every_row(node)

    def pick(self, node: Node, dim: int) -> Node:
        """The last row."""
        rows = (*[slice(None)] * dim, slice(-1, None))
        return self.graph.call_function(operator.getitem, (node, rows))

    def scatter(self, node: Node, dim: int, before: Node) -> Node:
        """The other rows are not there."""
        raise every_row(node)

    def _finish(self, output: Node) -> None:
        def check(arg: Node) -> Node:
            if self.changed_dims(arg):
                raise every_row(arg)
            return arg

        map_arg(output.args, check)
