"""``select-tokens`` (CAS): from one place on, the decoder computes on an exact budget of the prompt's tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.fx import Node

from segmo.options import check_frames
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.cut import TokenCut
from segmo.passes.graph import concrete, example
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.scene_nodes import (
    OPS,
    attention_relevance_node,
    merge_of,
    relevance_node,
    scene_nodes,
    to_host,
    video_total,
)
from segmo.passes.video_count import count
from segmo.runtime.lowering import TORCH
from segmo.runtime.selection import kept_count


@dataclass(frozen=True)
class SelectTokens:
    """Keeps all text and ``floor(keep * V)`` of V video tokens, by relevance to the question and by novelty.

    With ``scorer="embedding"`` or ``"external"`` the cut is right after the video's features have entered, so no layer
    sees a dropped token. With ``scorer="attention"`` it is in front of the attention of layer ``layer``, whose queries
    and keys are the score; the caches of the layers before are cut to the same tokens.

    Never exact: what is dropped is gone. Order and position ids of the kept tokens stay as they were.

    Trap avoided: the model's later additions (Qwen3-VL's deepstack), caches, masks and rotary tables all have the
    prompt's length; :class:`segmo.passes.cut.TokenCut` follows them, and what it cannot follow is a miss, not a guess.
    """

    name: ClassVar[str] = "select-tokens"
    tier: ClassVar[Tier] = Tier.APPROXIMATE

    keep: float = 0.25
    frames: float = 1.0
    scorer: str = "embedding"
    layer: int = 3
    balance: float = 0.5

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        facts = rewrite.facts
        miss = facts.miss or facts.cut_miss
        if miss:
            return Outcome(misses=(miss,))
        check_frames(self.frames, self.scorer)
        keep = min(self.keep, self.frames)  # tokens of frames that were not encoded cannot be kept
        if keep == 1:
            return Outcome(misses=(Miss.of("keep-all"),))
        blind = next((a.miss for a in facts.attentions if a.miss and a.miss.code == "not-causal"), None)
        if blind:
            return Outcome(misses=(blind,))
        merge = merge_of(rewrite)
        embeds = example(merge.node)
        batch, length = (int(concrete(size)) for size in embeds.shape[:2])
        if merge.counted is None:
            return Outcome(misses=(Miss.of("unknown-count", node=merge.features),))
        total = count(merge.counted, embeds.shape[-1])
        kept = kept_count(length, total, batch, keep)
        nodes = scene_nodes(rewrite)
        self._novelty_node(rewrite)
        roots, start = self._roots(rewrite)
        index = self._index_node(rewrite, keep)
        with rewrite.graph.inserting_after(nodes["last"]):
            size = rewrite.graph.call_function(torch.ops.aten.sym_size.int, (nodes["frame"], 1))
        cut = TokenCut(rewrite.graph, index, size, length, kept, merge, facts.caches)
        try:
            cut.run(roots, start)
        except DoesNotApply as reason:
            raise _of_one_length(reason, embeds.shape[1]) from reason
        self._gather_roles(rewrite)
        rewrite.notes.append(f"select-tokens: {total} video tokens in the traced call, {kept - length + total} kept")
        whole = self.frames < 1 and not facts.frames_chosen
        return Outcome(matches=1, misses=(Miss.of("no-encoder"),) if whole else ())

    def _roots(self, rewrite: Rewrite) -> tuple[dict[Node, int], Node]:
        """What is cut, along which dimension, and the first node behind the cut."""
        if self.scorer != "attention":
            relevance = relevance_node(rewrite)
            return {merge_of(rewrite).node: 1}, relevance.next
        attentions = rewrite.facts.attentions
        if self.layer >= len(attentions):
            last = len(attentions) - 1
            detail = f"{self.layer}, but the decoder's layers in this graph are 0 to {last}"
            raise DoesNotApply(Miss.of("no-layer", detail, attentions[last].node))
        relevance = attention_relevance_node(rewrite, self.layer)
        attention = attentions[self.layer]
        bound = [arg for arg in attention.node.all_input_nodes if arg is not attention.mask]
        tensors = [node for node in bound if hasattr(example(node), "dim") and example(node).dim() == 4]
        return dict.fromkeys(tensors, 2), relevance.next

    def _novelty_node(self, rewrite: Rewrite) -> None:
        """Puts what is new inside scenes in the place of "novelty", which compares with the frame before alone."""
        nodes = rewrite.nodes
        with rewrite.graph.inserting_after(nodes["scene"]):
            known = (nodes[name] for name in ("novelty", "frame", "cell", "scene"))
            args = (merge_of(rewrite).node, *known, nodes.get("encoded"), TORCH)
            node = rewrite.graph.call_function(OPS.scene_novelty.default, args)
        if nodes["last"] is nodes["scene"]:
            nodes["last"] = node
        nodes["novelty"] = node

    def _index_node(self, rewrite: Rewrite, keep: float) -> Node:
        """Puts the positions of the kept tokens: "chosen" in the host's memory, "index" where the model is."""
        nodes = rewrite.nodes
        to_host(rewrite, "novelty", "scene", "relevance")
        with rewrite.graph.inserting_before(nodes["last"].next):
            names = ("novelty", "frame", "cell", "scene", "relevance")
            args: tuple[Any, ...] = (
                *(nodes[name] for name in names),
                video_total(rewrite),
                keep,
                self.balance,
                nodes.get("encoded"),
            )
            chosen = rewrite.graph.call_function(OPS.select_tokens.default, args)
            index = rewrite.graph.call_function(OPS.to_device.default, (chosen, merge_of(rewrite).node))
        nodes["chosen"], nodes["index"], nodes["last"] = chosen, index, index
        return index

    def _gather_roles(self, rewrite: Rewrite) -> None:
        """Frame, scene and padding of the kept tokens, for the passes that follow."""
        nodes = rewrite.nodes
        for name in ("frame", "scene", "valid"):
            if name in nodes:
                with rewrite.graph.inserting_after(nodes["last"]):
                    node = rewrite.graph.call_function(OPS.gather_tokens.default, (nodes[name], nodes["chosen"], 1))
                nodes[f"kept_{name}"] = nodes["last"] = node


def _of_one_length(reason: DoesNotApply, length: Any) -> DoesNotApply:
    """The same reason; where the prompt's length is a plain number in the graph, with what would help.

    Numbers that are computed from it (rows for a mixture of experts, the padding of a cache) are plain numbers there
    too, and nothing tells what they count.
    """
    if isinstance(length, torch.SymInt) or reason.miss.code != "cannot-follow":
        return reason
    miss = Miss.of("fixed-lengths", reason.miss.reason)
    return DoesNotApply(replace(miss, node=reason.miss.node, source=reason.miss.source))
