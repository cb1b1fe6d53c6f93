"""What a captured graph is: prefill or decode, where the video enters, and the decoder's attention."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from segmo.families import FAMILIES, Family
from segmo.passes.graph import downstream, example, sizes, upstream
from segmo.passes.reasons import Miss
from segmo.runtime.question import NO_CHAT, ChatTokens

SDPA = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class Attention:
    """One decoder attention call.

    Attributes:
        node: the call of ``scaled_dot_product_attention``.
        layer: decoder layer, counted from 0.
        query, key, value: (B, A, N, D) and (B, G, N, D); key and value before they are repeated for GQA.
        mask: the mask's node, None for plain causal attention.
        causal: whether the call itself is causal.
        dropout: probability with which a weight is dropped.
        scale: a number, a node that gives one, or None for ``1 / sqrt(D)``.
    """

    node: Node
    layer: int
    query: Node
    key: Node
    value: Node
    mask: Node | None
    causal: bool
    dropout: float
    scale: Any


@dataclass(frozen=True)
class Merge:
    """Where the video's features take the places of their placeholder tokens.

    Attributes:
        node: the last ``masked_scatter`` into the embeddings; its value is (B, N, H).
        mask: mask of the video's tokens, (B, N, 1 or H) bool.
        features: the video's features in prompt order; all but the last dimension count tokens.
    """

    node: Node
    mask: Node
    features: Node


@dataclass(frozen=True)
class Padding:
    """Where the attention mask of a prefill comes from.

    Attributes:
        attention_mask: the 2-D mask that was handed in, or None.
        positions: position ids from which the model looks for packed sequences, or None.
    """

    attention_mask: Node | None
    positions: Node | None


@dataclass(frozen=True)
class Facts:
    """What was found in a graph.

    Attributes:
        kind: "prefill", "decode" or "other".
        attentions: the decoder's attention calls, in layer order.
        merge: where the video enters, if it does.
        positions: M-RoPE position ids, (3 or 4, B, N); None for families with 1-D positions.
        padding: what the decoder's masks are made from.
        family: the model family, if it is a known one.
        cells_per_frame: tokens of a frame, for families with 1-D positions.
        miss: why nothing can be rewritten.
        mask_miss: why attention cannot be replaced.
        cut_miss: why tokens cannot be dropped.
        ids: token ids of the prompt, (B, N); None where it came in as embeddings.
        chat: what is known of the model's chat template.
        frames_chosen: SegMo calls the model's vision encoder and so can leave frames out of it.
        called_from: the user's line that called the model.
    """

    kind: str
    attentions: tuple[Attention, ...] = ()
    merge: Merge | None = None
    positions: Node | None = None
    padding: Padding = Padding(None, None)
    family: Family | None = None
    cells_per_frame: int = 0
    miss: Miss | None = None
    mask_miss: Miss | None = None
    cut_miss: Miss | None = None
    ids: Node | None = None
    chat: ChatTokens = NO_CHAT
    frames_chosen: bool = False
    called_from: str | None = None


def analyse(gm: GraphModule, config: Any = None) -> Facts:
    """Facts of a graph.

    Args:
        gm: as Dynamo hands it over.
        config: the transformers config of the model it was captured from, if that is known.
    """
    scatters = [node for node in gm.graph.nodes if node.op == "call_method" and node.target == "masked_scatter"]
    family = FAMILIES.get(getattr(config, "model_type", ""))
    video = family.video_argument if family else "video"
    merge = _find_merge(scatters, video)
    roots = [merge.node] if merge else []
    attentions = _find_attentions(gm, downstream(roots) if roots else None)
    if not attentions:
        implementation = getattr(config, "_attn_implementation", None)
        return Facts("other", merge=merge, miss=_why_no_decoder(gm, merge, implementation))
    kind = _kind(attentions[0])
    if kind == "decode":
        return Facts("decode", attentions, miss=Miss.of("decode", node=attentions[0].node))
    miss = _why_not(gm, attentions, merge, family, config)
    positions = _placeholder(gm, "position_ids")
    padding, mask_miss = _padding(attentions)
    cells = family.cells_per_frame(config) if family and family.cells_per_frame else 0
    if miss is None and family and family.mrope and positions is None:
        miss = Miss.of("no-positions", node=attentions[0].node)
    if family is None or not family.mrope:
        positions = None
    ids = _placeholder(gm, "input_ids")
    return Facts(kind, attentions, merge, positions, padding, family, cells, miss, mask_miss, _fixed_cache(gm), ids)


def _why_not(
    gm: GraphModule,
    attentions: tuple[Attention, ...],
    merge: Merge | None,
    family: Family | None,
    config: Any,
) -> Miss | None:
    if merge is None:
        embeds = _placeholder(gm, "inputs_embeds", "hidden_states")
        if embeds is not None:
            return Miss.of("no-merge", f"the graph starts from {embeds.name}", embeds)
        lookup = next((node for node in gm.graph.nodes if node.target is torch.nn.functional.embedding), None)
        if lookup is not None:
            return Miss.of("text-only", node=lookup)
        return Miss.of("no-merge", "the graph is a piece of the decoder", attentions[0].node)
    if family is None:
        known = ", ".join(FAMILIES)
        model_type = getattr(config, "model_type", None)
        found = f"model_type {model_type!r} is not known" if model_type else "the model has no transformers config"
        return Miss.of("unknown-family", f"{found}; known: {known}", merge.node)
    if _slides(config):
        return Miss.of("sliding-window", node=attentions[0].node)
    return _filled_cache(attentions)


def _why_no_decoder(gm: GraphModule, merge: Merge | None, implementation: str | None) -> Miss:
    """A video that enters a decoder whose attention is not known was lost; a piece without either was not."""
    if merge is not None and implementation not in (None, "sdpa"):
        return Miss.of("other-attention", repr(implementation), merge.node)
    last = next((node for node in reversed(gm.graph.nodes) if node.op.startswith("call_")), None)
    return Miss.of("no-decoder", node=last)


def _fixed_cache(gm: GraphModule) -> Miss | None:
    """A cache of fixed length has a slot for every prompt token, so its keys cannot be cut."""
    for node in gm.graph.nodes:
        if node.op == "call_method" and node.target == "index_copy_":
            return Miss.of("static-cache", node=node)
    return None


def _filled_cache(attentions: tuple[Attention, ...]) -> Miss | None:
    for attention in attentions:
        query, key = sizes(attention.query), sizes(attention.key)
        if query and key and query[-2] != key[-2]:
            return Miss.of("filled-cache", node=attention.key)
    return None


def _slides(config: Any) -> bool:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return "sliding_attention" in (getattr(text, "layer_types", None) or ())


def _placeholder(gm: GraphModule, *names: str) -> Node | None:
    """The first tensor input whose name ends with one of ``names``."""
    for node in gm.graph.nodes:
        if node.op == "placeholder" and isinstance(example(node), torch.Tensor):
            name = str(node.target).lower().rstrip("_")
            if any(name.endswith(end) for end in names):
                return node  # type: ignore[no-any-return]  # fx gives its nodes no type
    return None


def _find_merge(scatters: list[Node], video: str) -> Merge | None:
    """The last scatter into the embeddings, if one before it or itself takes the video's features."""
    for node in reversed(scatters):
        mask, features = node.args[1], node.args[2]
        if not isinstance(mask, Node) or not isinstance(features, Node):
            continue
        sources = (features, *upstream(features))
        if any(source.op == "placeholder" and video in str(source.target).lower() for source in sources):
            later = [other for other in scatters if other in downstream([node])]
            return Merge(later[-1] if later else node, mask, features)
    return None


def sdpa_arguments(node: Node) -> dict[str, Any]:
    """Arguments of a call of ``scaled_dot_product_attention`` by name, those that were given."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _find_attentions(gm: GraphModule, within: set[Node] | None) -> tuple[Attention, ...]:
    found: list[Attention] = []
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target is not SDPA or (within is not None and node not in within):
            continue
        bound = sdpa_arguments(node)
        mask, causal = bound.get("attn_mask"), bool(bound.get("is_causal", False))
        if mask is None and not causal and within is None:
            # Without a mask, attention of a vision tower looks the same as that of one new token.
            rows, columns = sizes(bound["query"]), sizes(bound["key"])
            if rows is None or columns is None or rows[-2] == columns[-2]:
                continue
        key, value = _unrepeated(bound["key"]), _unrepeated(bound["value"])
        dropout = bound.get("dropout_p", 0.0)
        found.append(Attention(node, len(found), bound["query"], key, value, mask, causal, dropout, bound.get("scale")))
    return tuple(found)


def _unrepeated(node: Node) -> Node:
    """Key/value heads before ``repeat_kv`` copied them for each query head: reshape(expand(x[:, :, None]))."""
    shape = sizes(node)
    if node.op != "call_method" or node.target not in ("reshape", "view") or shape is None:
        return node
    expanded = node.args[0]
    if not isinstance(expanded, Node) or expanded.target != "expand":
        return node
    inserted = expanded.args[0]
    if not isinstance(inserted, Node) or inserted.target is not operator.getitem:
        return node
    source = inserted.args[0]
    if not isinstance(source, Node):
        return node
    small = sizes(source)
    if small is None or len(small) != 4 or len(shape) != 4 or small[2:] != shape[2:]:
        return node
    return source


def _kind(attention: Attention) -> str:
    query, key = sizes(attention.query), sizes(attention.key)
    alone = query is not None and query[-2] == 1
    return "decode" if alone and key is not None and key[-2] != 1 else "prefill"


def _padding(attentions: tuple[Attention, ...]) -> tuple[Padding, Miss | None]:
    """What the decoder's masks are made from, and why they cannot be replaced by segments, if so."""
    padding = Padding(None, None)
    for attention in attentions:
        if attention.dropout:
            return padding, Miss.of("dropout", node=attention.node)
        if attention.mask is None:
            if not attention.causal:
                return padding, Miss.of("not-causal", node=attention.node)
            continue
        inputs = [
            node
            for node in (attention.mask, *upstream(attention.mask))
            if node.op == "placeholder" and isinstance(example(node), torch.Tensor)
        ]
        for node in inputs:
            name = str(node.target).lower().rstrip("_")
            rank = example(node).dim()
            if name.endswith("attention_mask") and rank == 2:
                padding = Padding(node, padding.positions)
            elif name.endswith("attention_mask"):
                return padding, Miss.of("user-mask", rank, node)
            elif name.endswith("position_ids"):
                padding = Padding(padding.attention_mask, node)
            elif rank > 0 and not name.endswith("cache_position"):
                return padding, Miss.of("foreign-mask", node.target, node)
    return padding, None
