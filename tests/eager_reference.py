"""The contract run eagerly, by other means than SegMo: kept tokens by indexing the inputs, segments by a dense mask.

Nothing here is compiled, and attention is plain SDPA with a boolean mask put in through transformers' own interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from models import VIDEO
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from segmo.report.prefill import Prefill
from segmo.runtime.layout import QUERY, SINK, TURN


def dense_mask(segment_K: Tensor, context_K: Tensor | None) -> Tensor:
    """The rule of the contract, written out: (K, K) bool."""
    length = segment_K.shape[0]
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = (segment_K[j] == SINK) | (segment_K[i] == QUERY) | (segment_K[i] == segment_K[j])
    seen = seen | (segment_K[j] == TURN) | (segment_K[i] == TURN)
    if context_K is not None:
        seen = seen | context_K[j]
    return (j <= i) & seen


@contextmanager
def masked_attention(model: Any, masks: list[Tensor | None]) -> Iterator[None]:
    """Decoder layer l uses ``masks[l]`` (B, K, K); other attention, and layers with None, run as they are."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    layers = {id(layer.self_attn): mask for layer, mask in zip(decoder(model).layers, masks, strict=True)}

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        mask = layers.get(id(module))
        if mask is not None and query.shape[2] > 1:
            attention_mask = mask[:, None]
            kwargs["is_causal"] = False
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa)


def decoder(model: Any) -> Any:
    """The language model inside a Video LLM."""
    return model.model.language_model


def prefill_masks(prefill: Prefill, layers: int) -> list[Tensor | None]:
    """The masks of a prefill that was cut before layer 0 or not at all."""
    if prefill.segment is None:  # spelled out, because transformers takes gaps in the positions for packed sequences
        kept = len(prefill.kept())
        return [torch.ones(1, kept, kept, dtype=torch.bool).tril()] * layers
    rows = [
        dense_mask(segment, None if prefill.context is None else prefill.context[row])
        for row, segment in enumerate(prefill.segment)
    ]
    return [torch.stack(rows)] * layers


def merged(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What enters the decoder for a prompt: embeddings with the video merged in, positions, deepstack features."""
    base, ids = model.model, inputs["input_ids"]
    embeds = base.get_input_embeddings()(ids)
    video = ids == VIDEO
    out: dict[str, Any] = {"video": video}
    grid = {"video_grid_thw": inputs["video_grid_thw"]} if "video_grid_thw" in inputs else {}
    features = base.get_video_features(pixel_values_videos=inputs["pixel_values_videos"], **grid, return_dict=True)
    rows = features.pooler_output
    flat = torch.cat(list(rows)) if isinstance(rows, (tuple, list)) else rows.flatten(0, 1)
    out["inputs_embeds"] = embeds.masked_scatter(video[..., None], flat.to(embeds.dtype))
    if grid:
        out["position_ids"], _ = base.get_rope_index(
            ids, mm_token_type_ids=inputs["mm_token_type_ids"], attention_mask=inputs["attention_mask"], **grid
        )
    else:
        out["position_ids"] = torch.arange(ids.shape[1])[None]
    deepstack = getattr(features, "deepstack_features", None)
    if deepstack is not None:
        out["deepstack"] = [
            torch.cat(list(layer)) if isinstance(layer, (tuple, list)) else layer for layer in deepstack
        ]
    return out


def cut_logits(model: Any, inputs: dict[str, Tensor], prefill: Prefill) -> Tensor:
    """Logits of the last token when the decoder runs eagerly on the kept tokens only, (B, vocabulary).

    The tokens are picked from the decoder's inputs by ``prefill.index``; nothing of SegMo's graph is used.
    """
    entering = merged(model, inputs)
    index = prefill.index
    rows = torch.arange(inputs["input_ids"].shape[0])[:, None]
    embeds, positions = entering["inputs_embeds"], entering["position_ids"]
    extra: dict[str, Any] = {}
    if index is not None:
        video = entering["video"]
        if "deepstack" in entering:
            number = video.long().flatten().cumsum(0).view_as(video) - 1
            kept = number[rows, index][video[rows, index]]
            extra["deepstack_visual_embeds"] = [layer[kept] for layer in entering["deepstack"]]
            extra["visual_pos_masks"] = video[rows, index]
        embeds = embeds[rows, index]
        positions = positions.expand(*positions.shape[:-2], len(rows), -1)[..., rows, index]
    elif "deepstack" in entering:
        extra = {"deepstack_visual_embeds": entering["deepstack"], "visual_pos_masks": entering["video"]}
    with torch.no_grad(), masked_attention(model, prefill_masks(prefill, len(decoder(model).layers))):
        hidden = decoder(model)(inputs_embeds=embeds, position_ids=positions, use_cache=False, **extra)[0]
        return model.lm_head(hidden[:, -1])  # type: ignore[no-any-return]
