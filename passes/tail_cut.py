"""The last cut: behind the last attention, the graph computes the last token's row only."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from segmo.passes.analyse import Attention, Merge
from segmo.passes.cut import TokenCut
from segmo.passes.graph import concrete, downstream, example
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.scene_nodes import OPS


def every_row(node: Node) -> DoesNotApply:
    """Somebody reads other rows of the last layer than the last one."""
    return DoesNotApply(Miss.of("every-row", node=node))


class TailCut(TokenCut):
    """Rewrites what is computed from the last attention's output, once that has one row.

    Same walk as :class:`segmo.passes.cut.TokenCut`. What differs: the kept row is known beforehand, and nothing can be
    put back to the prompt's length.

    Args:
        graph: rewritten in place.
        merge: where the video enters.
        attentions: the decoder's attention calls.
    """

    def __init__(self, graph: Graph, merge: Merge, attentions: Sequence[Attention]) -> None:
        length = int(concrete(example(merge.node).shape[1]))
        super().__init__(graph, merge.node, merge.node, length, 1, merge, attentions)

    def follow(self, attention: Node) -> None:
        """Mends what comes after ``attention``, whose traced value has all rows and which now gives one."""
        old = example(attention)
        with self.mode:
            size = [concrete(s) for s in old.shape]
            self.values[attention] = torch.empty([*size[:2], self.new, size[3]], dtype=old.dtype, device=old.device)
        self.after = {attention, *downstream([attention])}
        order = list(self.graph.nodes)
        self._walk(order[order.index(attention) + 1 :])

    def _visit(self, node: Node) -> None:
        if node.target in (OPS.scatter_tokens.default, OPS.join_tokens.default):  # on its way to the prompt's length
            raise every_row(node)
        super()._visit(node)

    def _visit_rows(self, node: Node) -> None:
        raise every_row(node)  # features are added at the video's tokens

    def _pick(self, node: Node, dim: int) -> Node:
        rows = (*[slice(None)] * dim, slice(-1, None))
        return self.graph.call_function(operator.getitem, (node, rows))

    def _scatter(self, node: Node, dim: int, before: Node) -> Node:
        raise every_row(node)

    def _finish(self, output: Node) -> None:
        def check(arg: Node) -> Node:
            if self.changed_dims(arg):
                raise every_row(arg)
            return arg

        map_arg(output.args, check)
