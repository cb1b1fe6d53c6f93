"""The decoder's attention calls in a graph: what each reads, which layer it is, and whether segments may replace it."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from segmo.passes.graph import example, sizes, upstream
from segmo.passes.reasons import Miss

SDPA = torch.nn.functional.scaled_dot_product_attention
# x[:, :, None, :, :]: copies of a head come one after another, as SDPA's enable_gqa has them.
_COPIES_LAST = (slice(None), slice(None), None, slice(None), slice(None))
# Kinds of a config's ``layer_types`` whose attention sees a neighbourhood and no more.
_LOCAL = ("sliding_attention", "chunked_attention", "window_attention", "local_attention")


@dataclass(frozen=True)
class Attention:
    """One decoder attention call.

    Attributes:
        node: the call of ``scaled_dot_product_attention``.
        layer: attention layer, counted from 0.
        query, key, value: (B, A, N, D) and (B, G, N, D); key and value before they are repeated for GQA.
        mask: the mask's node, None for plain causal attention.
        causal: whether the call itself is causal.
        dropout: probability with which a weight is dropped.
        scale: a number, a node that gives one, or None for ``1 / sqrt(D)``.
        miss: why segments cannot take its place, None if they can.
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
    miss: Miss | None = None


@dataclass(frozen=True)
class Padding:
    """Where the attention mask of a prefill comes from.

    Attributes:
        attention_mask: the 2-D mask that was handed in, or None.
        positions: position ids from which the model looks for packed sequences, or None.
    """

    attention_mask: Node | None = None
    positions: Node | None = None


def find_attentions(gm: GraphModule, within: set[Node] | None) -> tuple[Attention, ...]:
    """The attention calls among ``within``; without it, those that cannot be a vision tower's."""
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
        key, value = unrepeated(bound["key"]), unrepeated(bound["value"])
        dropout = bound.get("dropout_p", 0.0)
        found.append(Attention(node, len(found), bound["query"], key, value, mask, causal, dropout, bound.get("scale")))
    return tuple(found)


def sdpa_arguments(node: Node) -> dict[str, Any]:
    """Arguments of a call of ``scaled_dot_product_attention`` by name, those that were given."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def unrepeated(node: Node) -> Node:
    """Key/value heads before ``repeat_kv`` copied them for each query head: reshape(expand(x[:, :, None]))."""
    shape = sizes(node)
    if node.op != "call_method" or node.target not in ("reshape", "view") or shape is None:
        return node
    expanded = node.args[0]
    if not isinstance(expanded, Node) or expanded.target != "expand":
        return node
    inserted = expanded.args[0]
    if not isinstance(inserted, Node) or inserted.target is not operator.getitem or inserted.args[1] != _COPIES_LAST:
        return node
    source = inserted.args[0]
    if not isinstance(source, Node):
        return node
    small = sizes(source)
    if small is None or len(small) != 4 or len(shape) != 4 or small[2:] != shape[2:]:
        return node
    return source


def rows_and_keys(attention: Attention) -> tuple[int | None, int | None]:
    """How many rows and keys a call has in the traced call."""
    query, key = sizes(attention.query), sizes(attention.key)
    return (query[-2] if query else None), (key[-2] if key else None)


def with_misses(attentions: Sequence[Attention], config: Any) -> tuple[tuple[Attention, ...], Padding]:
    """Each call with the reason why segments cannot take its place, and what the masks of the others are made from."""
    padding = Padding()
    judged = []
    for attention in attentions:
        miss = _why_not(attention, config)
        if miss is None and attention.mask is not None:
            padding, miss = _padding(attention.mask, padding)
        judged.append(replace(attention, miss=miss))
    return tuple(judged), padding


def _why_not(attention: Attention, config: Any) -> Miss | None:
    if attention.dropout:
        return Miss.of("dropout", node=attention.node)
    rows, keys = rows_and_keys(attention)
    if rows == 1 and keys != 1:
        return Miss.of("one-row", node=attention.node)
    if is_local(attention.node, config):
        return Miss.of("local-layer", node=attention.node)
    if attention.mask is None and not attention.causal:
        return Miss.of("not-causal", node=attention.node)
    return None


def is_local(node: Node, config: Any) -> bool:
    """Whether the layer sees a neighbourhood only, from the config's kinds of layers."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        return bool(getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True))
    layer = decoder_layer(node)
    if layer is None or layer >= len(kinds):
        return any(kind in _LOCAL for kind in kinds)
    return kinds[layer] in _LOCAL


def decoder_layer(node: Node) -> int | None:
    """The decoder layer that a call stands in, from the path of the module that made it."""
    stack = node.meta.get("nn_module_stack") or {}
    for key, (path, *_) in reversed(list(stack.items())):
        found = re.findall(r"layers?\W+(\d+)", f"{path}") or re.findall(r"layers?\W+(\d+)", f"{key}")
        if found:
            return int(found[-1])
    return None


def _padding(mask: Node, padding: Padding) -> tuple[Padding, Miss | None]:
    """What a mask is made from, and why it is more than causality and padding, if so."""
    inputs = [
        node for node in (mask, *upstream(mask)) if node.op == "placeholder" and isinstance(example(node), torch.Tensor)
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
            own = "_parameters_" in str(node.target)  # of an indexer, which picks keys for each query
            return padding, Miss.of("foreign-mask", "what the layer computes" if own else node.target, node)
    return padding, None
