"""Tiny models of the real transformers classes, with random weights, made from their configs."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLModel,
    SiglipVisionConfig,
)

_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2}
_TOWER = {**_VISION, "intermediate_size": 16, "out_hidden_size": 16}

_MROPE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLModel, {**_VISION, "embed_dim": 16}),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLModel, {**_TOWER, "fullatt_block_indexes": [0]}),
    "qwen3_vl": (
        Qwen3VLConfig,
        Qwen3VLModel,
        {**_TOWER, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
}


@cache
def mrope_model(model_type: str) -> Any:
    """A Qwen model without its head; a test that changes it must make its own."""
    config, model, vision = _MROPE[model_type]
    return model(config(text_config=dict(_TEXT), vision_config=dict(vision))).eval()


def llava_onevision(image_size: int, patch_size: int) -> Any:
    """A LLaVA-OneVision whose vision tower reads square frames of ``image_size`` pixels."""
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch_size,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=Qwen2Config(**_TEXT), image_token_index=3, video_token_index=4
    )
    return LlavaOnevisionModel(config).eval()
