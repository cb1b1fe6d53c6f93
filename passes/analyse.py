"""What a captured graph is: prefill or decode, where the video enters, and the decoder's attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from segmo.families import Family, family_for
from segmo.passes.attentions import Attention, Padding, find_attentions, rows_and_keys, with_misses
from segmo.passes.graph import downstream, example, upstream
from segmo.passes.mixers import is_recurrent
from segmo.passes.reasons import Miss
from segmo.passes.video_count import known_size
from segmo.runtime.question import NO_CHAT, ChatTokens


@dataclass(frozen=True)
class Merge:
    """Where the video's features take the places of their placeholder tokens.

    Attributes:
        node: the last ``masked_scatter`` into the embeddings; its value is (B, N, H).
        mask: mask of the video's tokens, (B, N, 1 or H) bool.
        features: the video's features in prompt order.
        counted: a tensor of known size with H elements for each video token; None where only the data tell.
    """

    node: Node
    mask: Node
    features: Node
    counted: Node | None


@dataclass(frozen=True)
class Facts:
    """What was found in a graph.

    Attributes:
        kind: "prefill", "decode" or "other".
        attentions: the decoder's attention calls, in layer order.
        caches: nodes whose values are kept in a cache.
        merge: where the video enters, if it does.
        positions: M-RoPE position ids, (3 or 4, B, N); None for families with 1-D positions.
        padding: what the decoder's masks are made from.
        family: the model family, if it is a known one.
        cells_per_frame: tokens of a frame, for families with 1-D positions.
        miss: why nothing can be rewritten.
        cut_miss: why tokens cannot be dropped.
        ids: token ids of the prompt, (B, N); None where it came in as embeddings.
        chat: what is known of the model's chat template.
        frames_chosen: SegMo calls the model's vision encoder and so can leave frames out of it.
        called_from: the user's line that called the model.
        recurrent: the first call of a recurrent layer of the decoder, if it has such layers.
        by_inductor: inductor compiles what the passes leave.
    """

    kind: str
    attentions: tuple[Attention, ...] = ()
    caches: tuple[Node, ...] = ()
    merge: Merge | None = None
    positions: Node | None = None
    padding: Padding = field(default_factory=Padding)
    family: Family | None = None
    cells_per_frame: int = 0
    miss: Miss | None = None
    cut_miss: Miss | None = None
    ids: Node | None = None
    chat: ChatTokens = NO_CHAT
    frames_chosen: bool = False
    called_from: str | None = None
    recurrent: Node | None = None
    by_inductor: bool = False

    @property
    def replaceable(self) -> tuple[Attention, ...]:
        """The attention calls that segments may replace."""
        return tuple(attention for attention in self.attentions if attention.miss is None)

    @property
    def mask_miss(self) -> Miss | None:
        """Why no attention can be replaced, None if some can."""
        misses = [attention.miss for attention in self.attentions if attention.miss]
        if self.replaceable or not misses:
            return None
        return next((miss for miss in misses if not miss.expected), misses[0])


def analyse(gm: GraphModule, config: Any = None, stored: Collection[str] = ()) -> Facts:
    """Facts of a graph.

    Args:
        gm: as Dynamo hands it over.
        config: the transformers config of the model it was captured from, if that is known.
        stored: names of nodes that the traced code keeps in a cache, beside the decoder's keys and values.
    """
    scatters = [node for node in gm.graph.nodes if node.op == "call_method" and node.target == "masked_scatter"]
    family = family_for(config)
    merge = _find_merge(scatters, family.video_argument)
    roots = [merge.node] if merge else []
    within = downstream(roots)
    attentions = find_attentions(gm, within if roots else None)
    if not attentions:
        return Facts("other", merge=merge, miss=_why_no_decoder(gm, merge, _decoder_attention(config)))
    kind = _kind(attentions[0])
    if kind == "decode":
        return Facts("decode", attentions, miss=Miss.of("decode", node=attentions[0].node))
    miss = _why_not(gm, attentions, merge, family.video_argument)
    attentions, padding = with_misses(attentions, config)
    positions = _placeholder(gm, "position_ids")
    cells = family.cells_per_frame(config) if family.cells_per_frame else 0
    if miss is None and family.mrope and positions is None:
        miss = Miss.of("no-positions", node=attentions[0].node)
    if family.mrope is False or positions is None or example(positions).dim() != 3:
        positions = None
    caches = _caches(gm, attentions, stored)
    cut_miss, ids = _fixed_cache(gm), _placeholder(gm, "input_ids")
    recurrent = next((node for node in gm.graph.nodes if node in within and is_recurrent(node)), None)
    return Facts(
        kind, attentions, caches, merge, positions, padding, family, cells, miss, cut_miss, ids, recurrent=recurrent
    )


def _caches(gm: GraphModule, attentions: Sequence[Attention], stored: Collection[str]) -> tuple[Node, ...]:
    """What goes into a cache: the nodes of those names, and the decoder's keys and values."""
    known = [node for attention in attentions for node in (attention.key, attention.value)]
    named = [node for node in gm.graph.nodes if node.name in stored and isinstance(example(node), torch.Tensor)]
    return tuple(dict.fromkeys([*known, *named]))


def _why_not(
    gm: GraphModule,
    attentions: tuple[Attention, ...],
    merge: Merge | None,
    video: str,
) -> Miss | None:
    if merge is None:
        embeds = _placeholder(gm, "inputs_embeds", "hidden_states")
        if embeds is not None:
            return Miss.of("no-merge", f"the graph starts from {embeds.name}", embeds)
        lookup = next((node for node in gm.graph.nodes if node.target is torch.nn.functional.embedding), None)
        if lookup is not None:
            features = _encoder_output(gm, video)
            return Miss.of("text-only", node=lookup) if features is None else Miss.of("other-merge", node=features)
        return Miss.of("no-merge", "the graph is a piece of the decoder", attentions[0].node)
    return _filled_cache(attentions)


def _encoder_output(gm: GraphModule, video: str) -> Node | None:
    """What the call hands over of a video, that the graph uses."""
    for node in gm.graph.nodes:
        name = str(node.target).lower()
        if node.op == "placeholder" and "mm_encoder_outputs" in name and video in name and node.users:
            return node  # type: ignore[no-any-return]  # fx gives its nodes no type
    return None


def _decoder_attention(config: Any) -> str | None:
    """The attention implementation of the decoder, whose config may stand inside the model's."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return getattr(text, "_attn_implementation", None)


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
        rows, keys = rows_and_keys(attention)
        if rows != keys and rows != 1:  # one row is the last token's, in a layer that computes no more
            return Miss.of("filled-cache", node=attention.key)
    return None


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
            return Merge(later[-1] if later else node, mask, features, known_size(features))
    return None


def _kind(attention: Attention) -> str:
    rows, keys = rows_and_keys(attention)
    return "decode" if rows == 1 and keys != 1 else "prefill"
