"""Nodes that more than one pass needs: the video's layout, its scenes, and padding. Each is inserted once."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

import segmo.runtime.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.passes.analyse import Merge
from segmo.passes.base import Rewrite
from segmo.passes.graph import erase_unused, example, upstream
from segmo.passes.video_count import count_node
from segmo.runtime.lowering import TORCH
from segmo.runtime.scenes import MAX_SCENES

OPS: Any = torch.ops.segmo


def merge_of(rewrite: Rewrite) -> Merge:
    """Where the video enters; only called for graphs that have such a place."""
    merge = rewrite.facts.merge
    assert merge is not None
    return merge


def video_total(rewrite: Rewrite) -> Node | int | None:
    """Video tokens of the batch, from shapes alone; None where they do not tell. The first call puts the node."""
    merge = merge_of(rewrite)
    if merge.counted is None:
        return None
    if "total" in rewrite.nodes:
        return rewrite.nodes["total"]
    total = count_node(rewrite.graph, merge.counted, example(merge.node).shape[-1])
    if isinstance(total, Node):
        rewrite.nodes["total"] = total
    return total


def _entry(merge: Merge) -> Node:
    """The call that puts the video's features into the embeddings; other media may enter behind it."""
    return next((user for user in merge.features.users if user.target == "masked_scatter"), merge.node)


def _drop_count_check(rewrite: Rewrite, merge: Merge) -> None:
    """Takes the model's own check of the placeholders out; ``video_tokens`` makes it, and says both numbers."""
    made_from = {node for node in (merge.mask, *upstream(merge.mask)) if node.op != "placeholder"}
    for node in list(rewrite.graph.nodes):
        if node.target is torch._assert_async and not made_from.isdisjoint(upstream(node)):
            condition = node.args[0]
            rewrite.graph.erase_node(node)
            erase_unused([condition])


def _shared(rewrite: Rewrite, merge: Merge) -> bool:
    """Whether images come the same way as frames: their family has one placeholder, and no argument says "video"."""
    sources = (merge.features, *upstream(merge.features))
    told = any(source.op == "placeholder" and "video" in str(source.target).lower() for source in sources)
    family = rewrite.facts.family
    return family is not None and not family.video_argument and not told


def scene_nodes(rewrite: Rewrite) -> dict[str, Node]:
    """Puts "frame", "cell", "novelty", "similarity", "scene", "question" behind the merge, and "valid" if padded.

    Where frames may be missing, also "encoded", and "seen": the cells of those that are there.
    "positions", the M-RoPE ids that came in, is there for the report (they say how the cells of a frame lie), and the
    token "ids" are there for it too.
    """
    nodes = rewrite.nodes
    if "scene" in nodes:
        return nodes
    facts, merge, graph = rewrite.facts, merge_of(rewrite), rewrite.graph
    if merge.counted is not None:
        _drop_count_check(rewrite, merge)
    trailing = facts.family.trailing if facts.family else 0
    call: Any = graph.call_function
    with graph.inserting_before(_entry(merge)):  # counted before anything is put into its place
        video = call(OPS.video_tokens.default, (merge.mask, video_total(rewrite)))
    with graph.inserting_before(merge.node.next):
        chat = facts.chat.to_text()
        known = (video, facts.positions, facts.cells_per_frame, trailing, facts.ids, chat, _shared(rewrite, merge))
        layout = call(OPS.video_layout.default, known)
        nodes["frame"], nodes["cell"] = (call(operator.getitem, (layout, i)) for i in (0, 1))
        if rewrite.options.frames < 1:
            nodes["encoded"] = call(OPS.encoded_tokens.default, (merge.node, nodes["cell"]))
            nodes["seen"] = call(OPS.encoded_cells.default, (nodes["cell"], nodes["encoded"]))
        encoded = nodes.get("encoded")
        scan = call(OPS.scan_video.default, (merge.node, nodes["frame"], nodes["cell"], encoded, TORCH))
        nodes["novelty"], nodes["similarity"] = (call(operator.getitem, (scan, i)) for i in (0, 1))
        found = (nodes["similarity"], nodes["frame"], nodes["cell"], MAX_SCENES, encoded)
        nodes["scene"] = call(OPS.find_scenes.default, found)
        padding = facts.padding
        if padding.attention_mask is not None or padding.positions is not None:
            args = (padding.attention_mask, padding.positions, nodes["frame"])
            nodes["valid"] = call(OPS.valid_tokens.default, args)
        asked = (facts.ids, nodes["frame"], nodes["cell"], nodes.get("valid"), chat)
        nodes["question"] = call(OPS.question_tokens.default, asked)
    if facts.ids is not None:
        nodes["ids"] = facts.ids
    if facts.positions is not None:
        nodes["positions"] = facts.positions
    nodes["last"] = nodes["question"]
    return nodes


def relevance_node(rewrite: Rewrite, before: Node | None = None) -> Node:
    """Puts "relevance", (B, S), by a scorer that works on embeddings, in front of a node or behind what stands."""
    nodes = scene_nodes(rewrite)
    if "relevance" not in nodes:
        with rewrite.graph.inserting_before(before or nodes["last"].next):
            if rewrite.options.scorer == "external":
                args: tuple[Any, ...] = (nodes["scene"], nodes["frame"], nodes["cell"], MAX_SCENES)
                node = rewrite.graph.call_function(OPS.external_relevance.default, args)
            else:
                cell = nodes.get("seen", nodes["cell"])
                frame = None if "seen" in nodes else nodes["frame"]
                args = (merge_of(rewrite).node, nodes["scene"], cell, nodes["question"], MAX_SCENES, frame)
                node = rewrite.graph.call_function(OPS.embedding_relevance.default, args)
        nodes["relevance"] = node
        if before is None:
            nodes["last"] = node
    return nodes["relevance"]


def attention_relevance_node(rewrite: Rewrite, layer: int) -> Node:
    """Puts "relevance" in front of a decoder layer's attention, from its queries and keys."""
    nodes = scene_nodes(rewrite)
    attention = rewrite.facts.attentions[layer]
    with rewrite.graph.inserting_before(attention.node):
        args = (
            attention.query,
            attention.key,
            nodes["scene"],
            nodes["cell"],
            nodes["question"],
            nodes.get("valid"),
            scale_of(attention.query, attention.scale),
            MAX_SCENES,
            TORCH,
        )
        node = rewrite.graph.call_function(OPS.attention_relevance.default, args)
    nodes["relevance"] = nodes["last"] = node
    return node


def scale_of(query: Node, scale: Any) -> Any:
    """The softmax scale of an attention call: as given, or ``1 / sqrt(D)``."""
    if scale is not None:
        return scale
    return float(query.meta["example_value"].shape[-1]) ** -0.5
