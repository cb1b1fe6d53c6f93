"""``trim-last-layer``: behind the last attention, compute what the first new token needs and no more."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Node

import segmo.runtime.distributed.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.passes.attentions import SDPA, sdpa_arguments
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.graph import downstream, replace_call
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS, merge_of
from segmo.passes.sizes import index_of, settled_bound
from segmo.passes.tail_cut import TailCut

# What gives the last row of what.
_SEGMENTED: dict[Any, Any] = {
    OPS.segment_attention.default: OPS.segment_attention.default,
    OPS.rank_attention.default: OPS.rank_last_attention.default,
}


@dataclass(frozen=True)
class TrimLastLayer:
    """Narrows the last decoder layer to the last token's row, where only that row is read afterwards.

    ``generate()`` asks a prefill for the logits of the last token (``logits_to_keep=1``). Keys and values of every
    token are still made, because the cache needs them; the last layer's attention, output projection and MLP are then
    needed for one row. Exact, and worth one layer in all. Over ranks no context travels in that layer.

    Trap avoided: a model that hands out hidden states or all logits reads every row; that is found by following the
    graph to its outputs, and is a miss.
    """

    name: ClassVar[str] = "trim-last-layer"
    tier: ClassVar[Tier] = Tier.EXACT

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        facts = rewrite.facts
        if facts.miss:
            return Outcome(misses=(facts.miss,))
        merge = merge_of(rewrite)
        within = downstream([merge.node])
        attention = [n for n in rewrite.graph.nodes if n in within and _is_attention(n)][-1]
        if not any(_asks_last(node) for node in downstream([attention])):
            return Outcome(misses=(Miss.of("every-row", node=attention),))
        narrow = _narrowed(attention)
        TailCut(rewrite.graph, merge, facts.caches).follow(narrow)
        rewrite.notes.append(f"trim-last-layer: one row behind the attention of layer {len(facts.attentions) - 1}")
        return Outcome(matches=1)


def _is_attention(node: Node) -> bool:
    return node.op == "call_function" and node.target in (SDPA, *_SEGMENTED)


def _asks_last(node: Node) -> bool:
    """Whether a node is ``x[:, -1:]`` or ``x[:, -1]``."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return False
    item = index_of(node.args[1], 1, 2)
    start = settled_bound(item.start) if isinstance(item, slice) and item.stop is None else item
    return isinstance(start, int) and start == -1


def _narrowed(attention: Node) -> Node:
    """Puts attention of the last row to all keys in the place of an attention call."""
    if attention.target is SDPA:
        arguments = {**sdpa_arguments(attention), "is_causal": False}
        for name in ("query", "attn_mask"):
            if isinstance(arguments.get(name), Node):
                arguments[name] = _last_row(attention, arguments[name])
        return replace_call(attention, SDPA, (), arguments)
    query, *rest = attention.args
    if attention.target is OPS.segment_attention.default:
        rest[-1] = "reference"  # the schedule says what the row sees; as a mask it is one row
    return replace_call(attention, _SEGMENTED[attention.target], (_last_row(attention, query), *rest))


def _last_row(before: Node, node: Any) -> Node:
    rows: Any = (Ellipsis, slice(-1, None), slice(None))
    with before.graph.inserting_before(before):
        return before.graph.call_function(operator.getitem, (node, rows))
