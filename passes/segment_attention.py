"""``segment-attention`` (LSP): attention inside scene-bounded segments in place of global attention."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from segmo.passes.attentions import Attention
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.graph import replace_call
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS, on_device, scale_of, scene_nodes, to_host


@dataclass(frozen=True)
class SegmentAttention:
    """Replaces each decoder attention by one in which a video token sees sinks and its own segment.

    Query tokens see everything. The schedule of segments is made once per prefill and read by every layer. Exact with
    one segment, approximate otherwise.

    Between recurrent layers (linear attention, Mamba, short convolutions) it takes a number of segments: what segments
    cost the answers of such models is not measured, so that they do not come by default.

    Trap avoided: the model's own N x N mask is not read (padding comes from the 2-D mask), so it is never built.
    """

    name: ClassVar[str] = "segment-attention"
    tier: ClassVar[Tier] = Tier.APPROXIMATE

    segments: str | int = "scene"

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        facts = rewrite.facts
        if facts.miss is None and self.segments in (1, "equal:1"):
            return Outcome(misses=(Miss.of("one-segment"),))
        miss = facts.miss or facts.mask_miss
        if miss:
            return Outcome(misses=(miss,))
        if facts.recurrent is not None and self.segments == "scene":
            return Outcome(misses=(Miss.of("hybrid", node=facts.recurrent),))
        scene_nodes(rewrite)
        order = {node: place for place, node in enumerate(rewrite.graph.nodes)}
        index = rewrite.nodes.get("index")
        cut = order[index] if index is not None else -1
        early = [a for a in facts.replaceable if order[a.node] < cut]
        late = [a for a in facts.replaceable if order[a.node] > cut]
        # Layers in front of the cut see all tokens, and relevance is not known to them: segments without context.
        for attentions, prefix in ((early, ""), (late, "kept_" if index is not None else "")):
            if attentions:
                schedule = self._schedule(rewrite, prefix)
                for attention in attentions:
                    _replace(attention, schedule)
        left = {a.miss.code: a.miss for a in facts.attentions if a.miss}
        return Outcome(matches=len(facts.replaceable), misses=tuple(left.values()))

    def _schedule(self, rewrite: Rewrite, prefix: str) -> Node:
        nodes, graph = rewrite.nodes, rewrite.graph
        early = "index" in nodes and not prefix
        if "index" not in nodes:
            to_host(rewrite, "novelty", "scene")
        scene, after = nodes[f"{prefix}scene"], nodes["question"] if early else nodes["last"]
        with graph.inserting_before(after.next):
            if early:
                look = graph.call_function(OPS.to_host.default, ([on_device(scene)],))
                scene = graph.call_function(operator.getitem, (look, 0))
            # Where no tokens are selected, nobody else looks whether the features are numbers.
            checked = () if "index" in nodes else (nodes["novelty"], nodes["cell"])
            args = (nodes[f"{prefix}frame"], scene, str(self.segments), *checked)
            segment = graph.call_function(OPS.segment_ids.default, args)
            valid = nodes.get(f"{prefix}valid")
            schedule = graph.call_function(OPS.attention_schedule.default, (segment, None, valid))
        if not early:
            nodes.update(segment=segment, schedule=schedule, last=schedule)
        return schedule


def _replace(attention: Attention, schedule: Node) -> None:
    """Puts segment attention in the place of one SDPA call."""
    node = attention.node
    query, key, value = (_now(node, i, name) for i, name in enumerate(("query", "key", "value")))
    key, value = _unrepeat(key, attention.key), _unrepeat(value, attention.value)
    scale = scale_of(attention.query, attention.scale)
    replace_call(node, OPS.segment_attention.default, (query, key, value, schedule, scale, "reference"))


def _now(node: Node, place: int, name: str) -> Node:
    """An argument of the call as it stands now, after other passes."""
    arg = node.args[place] if len(node.args) > place else node.kwargs[name]
    assert isinstance(arg, Node)
    return arg


def _unrepeat(node: Node, original: Node) -> Node:
    """Walks back over ``reshape(expand(x[:, :, None]))`` if that is how the heads were repeated for this call."""
    if node is original or not _repeats(node):
        return node
    return node.args[0].args[0].args[0]  # type: ignore[union-attr, return-value]  # _repeats saw them


def _repeats(node: Node) -> bool:
    expanded = node.args[0] if node.target in ("reshape", "view") else None
    return isinstance(expanded, Node) and expanded.target == "expand"
