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
    All but "novelty", "similarity" and "scene" lie in the host's memory; :func:`to_host` brings these there.
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
    padding = facts.padding
    wanted = (facts.ids, facts.positions, padding.attention_mask, padding.positions)
    with graph.inserting_before(_entry(merge)):  # counted before anything is put into its place
        others = list(dict.fromkeys(node for node in wanted if node is not None))
        prompt = call(OPS.read_prompt.default, (merge.mask, video_total(rewrite), others))
        video, *copies = (call(operator.getitem, (prompt, at)) for at in range(len(others) + 1))
        copy: dict[Node | None, Node] = dict(zip(others, copies, strict=True))
        ids, positions = copy.get(facts.ids), copy.get(facts.positions)
    with graph.inserting_before(merge.node.next):
        chat = facts.chat.to_text()
        known = (video, positions, facts.cells_per_frame, trailing, ids, chat, _shared(rewrite, merge))
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
        if padding.attention_mask is not None or padding.positions is not None:
            args = (copy.get(padding.attention_mask), copy.get(padding.positions), nodes["frame"])
            nodes["valid"] = call(OPS.valid_tokens.default, args)
        asked = (ids, nodes["frame"], nodes["cell"], nodes.get("valid"), chat)
        nodes["question"] = call(OPS.question_tokens.default, asked)
    if ids is not None:
        nodes["ids"] = ids
    if facts.positions is not None:
        nodes["positions"] = facts.positions
    nodes["last"] = nodes["question"]
    return nodes


def to_host(rewrite: Rewrite, *names: str) -> None:
    """Brings what stands under these names into the host's memory, by one node behind what stands: one wait.

    What is there already stays, and so does what it was copied from.
    """
    nodes, graph = rewrite.nodes, rewrite.graph
    far = [name for name in names if not _copied(nodes[name])]
    if not far:
        return
    with graph.inserting_before(nodes["last"].next):
        visit = graph.call_function(OPS.to_host.default, ([nodes[name] for name in far],))
        for at, name in enumerate(far):
            nodes[name] = nodes["last"] = graph.call_function(operator.getitem, (visit, at))


def _copied(node: Node) -> bool:
    """Whether a node is what the host was given, or made of that alone."""
    source = node.args[0] if node.target is operator.getitem else node
    return isinstance(source, Node) and source.target in (OPS.to_host.default, OPS.external_relevance.default)


def on_device(node: Node) -> Node:
    """What a node that the host was given is a copy of; any other node itself."""
    if node.target is not operator.getitem or not _copied(node):
        return node
    visit, at = node.args
    return visit.args[0][at]  # type: ignore[union-attr, index, return-value]  # a list of nodes


def relevance_node(rewrite: Rewrite) -> Node:
    """Puts "relevance", (B, S), by a scorer that works on embeddings, behind what stands."""
    nodes = scene_nodes(rewrite)
    if "relevance" not in nodes:
        if rewrite.options.scorer == "external":  # scores are for scenes that the host has to know
            to_host(rewrite, "novelty", "scene")
        nodes["relevance"] = nodes["last"] = _score(rewrite, nodes["last"].next)
    return nodes["relevance"]


def relevance_of_scenes(rewrite: Rewrite, before: Node) -> Node:
    """ "relevance" in the host's memory, in front of a node that stands behind its look at the scenes.

    Where no pass has asked for it yet, that look takes it along.
    """
    nodes = rewrite.nodes
    if "relevance" not in nodes:
        if rewrite.options.scorer == "external":
            nodes["relevance"] = _score(rewrite, before)
            return nodes["relevance"]
        visit: Any = nodes["scene"].args[0]
        visit.args = ([*visit.args[0], _score(rewrite, visit)],)
        with rewrite.graph.inserting_before(before):
            place = len(visit.args[0]) - 1
            nodes["relevance"] = rewrite.graph.call_function(operator.getitem, (visit, place))
    return nodes["relevance"]


def _score(rewrite: Rewrite, before: Node) -> Node:
    """The node of a scorer that works on embeddings, in front of another node."""
    nodes = rewrite.nodes
    with rewrite.graph.inserting_before(before):
        if rewrite.options.scorer == "external":
            args: tuple[Any, ...] = (nodes["scene"], nodes["frame"], nodes["cell"], MAX_SCENES)
            return rewrite.graph.call_function(OPS.external_relevance.default, args)
        cell = nodes.get("seen", nodes["cell"])
        frame = None if "seen" in nodes else nodes["frame"]
        scan: Any = on_device(nodes["similarity"]).args[0]
        mean = rewrite.graph.call_function(operator.getitem, (scan, 2))
        args = (merge_of(rewrite).node, on_device(nodes["scene"]), cell, nodes["question"], MAX_SCENES, frame, mean)
        return rewrite.graph.call_function(OPS.embedding_relevance.default, args)


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
