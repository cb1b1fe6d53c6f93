"""``group-heads``: attention reads shared keys and values where they are, instead of a copy for each query head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Graph, Node

from segmo.passes.attentions import SDPA, sdpa_arguments, unrepeated
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.graph import erase_unused, example, replace_call, sizes
from segmo.passes.reasons import Miss


@dataclass(frozen=True)
class GroupHeads:
    """Undoes ``repeat_kv``. Where there is one query row, as in a decode step, the query heads of a group become rows
    of one head: the CPU's flash attention then reads each key once, and fills a tile where each head had a row of one.

    transformers repeats keys and values wherever there is a mask, and a traced graph always has one for padding, where
    the same model in eager mode finds out that nothing is padded. Exact to rounding.

    Trap avoided: a mask with rows or heads of its own belongs to one order of the query heads; such calls keep theirs.
    """

    name: ClassVar[str] = "group-heads"
    tier: ClassVar[Tier] = Tier.EXACT

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        facts = rewrite.facts
        if facts.miss and facts.kind != "decode":  # a graph that runs as it was does so in everything
            return Outcome(misses=(facts.miss,))
        if example(facts.attentions[0].query).device.type != "cpu":
            return Outcome(misses=(Miss.of("off-cpu"),))
        matches = sum(_group(rewrite.graph, node) for node in list(rewrite.graph.nodes) if node.target is SDPA)
        return Outcome(matches=matches, misses=() if matches else (Miss.of("no-copies"),))


def _group(graph: Graph, node: Node) -> bool:
    """Whether a call was rewritten."""
    given = sdpa_arguments(node)
    key, value = unrepeated(given["key"]), unrepeated(given["value"])
    query, small = sizes(given["query"]), sizes(key)
    repeated = key is not given["key"] and value is not given["value"]
    if query is None or small is None or not (repeated or given.get("enable_gqa")) or query[1] == small[1]:
        return False
    given |= {"key": key, "value": value, "enable_gqa": True}
    if query[-2] == 1 and not given.get("is_causal") and _is_shared(given.get("attn_mask")):
        _as_rows(graph, node, given, query[1], small[1])
        return True
    if repeated:
        replace_call(node, SDPA, (), given)
    return repeated


def _is_shared(mask: Node | None) -> bool:
    """Whether a mask is the same for all heads and rows."""
    shape = None if mask is None else sizes(mask)
    return mask is None or (shape is not None and len(shape) == 4 and shape[1:3] == (1, 1))


def _as_rows(graph: Graph, node: Node, given: dict[str, Any], heads: int | None, groups: int | None) -> None:
    """(B, A, 1, D) queries as (B, G, A/G, D), and the result back."""
    assert heads
    assert groups
    size, width = (example(given[name]).shape[-1] for name in ("query", "value"))
    with graph.inserting_before(node):
        query = graph.call_method("reshape", (given["query"], -1, groups, heads // groups, size))
        rows = graph.call_function(SDPA, (), {**given, "query": query, "enable_gqa": False})
        back = graph.call_method("reshape", (rows, -1, heads, 1, width))
    back.meta = {key: value for key, value in node.meta.items() if key in ("example_value", "stack_trace")}
    node.replace_all_uses_with(back)
    erase_unused([node])
