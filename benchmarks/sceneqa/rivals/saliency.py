"""Attention that tokens receive inside the vision encoder, which FastVID chooses by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from untrained import MERGE


@torch.no_grad()
def encoder_saliency(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, pictures: NDArray[np.uint8]
) -> Tensor:
    """Attention that each token's patches receive in the encoder's last layer, mean over heads, (F, cells)."""
    prepare: Any = processor.video_processor
    inputs = prepare(videos=[pictures], return_tensors="pt")
    patches = int(inputs["video_grid_thw"][0, 1:].prod())  # of a frame
    tower: Any = model.model.visual
    attention = tower.blocks[-1].attn
    seen: dict[str, Any] = {}

    def remember(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        seen.update(kwargs, hidden=args[0])

    hook = attention.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        tower(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    finally:
        hook.remove()
    hidden, (cos, sin) = seen["hidden"], seen["position_embeddings"]
    query, key, _ = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    query, key = (part.unflatten(0, (-1, patches)).transpose(1, 2) for part in (query, key))
    weights = (query @ key.transpose(2, 3) * attention.scaling).softmax(-1)  # (F, heads, patches, patches)
    return weights.mean(dim=(1, 2)).unflatten(1, (-1, MERGE**2)).sum(-1)
