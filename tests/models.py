"""Tiny Video LLMs of every family, in the real transformers classes with random weights, and prompts for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
VIDEO, IMAGE, START, END = 5, 6, 7, 8
LAYERS = 3
SIDE = 4  # patches of a frame's side for Qwen; two by two are merged into a token
LLAVA_SIDE = 24  # pixels of a frame's side for LLaVA-OneVision: 6 x 6 patches, 9 tokens
CELLS = {"qwen2_vl": 4, "qwen2_5_vl": 4, "qwen3_vl": 4, "llava_onevision": 9}


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        **more,
    }


def _mrope(section: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **more}}


_PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_TOKENS = {"video_token_id": VIDEO, "image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}


def _qwen2_vl() -> Any:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, **_PATCHES}
    config = Qwen2VLConfig(text_config=_text(**_mrope([2, 3, 3])), vision_config=vision, **_TOKENS)
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> Any:
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "window_size": 16,
        "fullatt_block_indexes": [0],
        "tokens_per_second": 2,
        **_PATCHES,
    }
    config = Qwen2_5_VLConfig(text_config=_text(**_mrope([2, 3, 3])), vision_config=vision, **_TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        **_PATCHES,
    }
    text = _text(head_dim=16, **_mrope([4, 2, 2], mrope_interleaved=True))
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **_TOKENS))


def llava_onevision(image_size: int = LLAVA_SIDE, patch_size: int = 4) -> Any:
    """A LLaVA-OneVision whose vision tower reads square frames of ``image_size`` pixels."""
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        "vision_use_head": False,
    }
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text()},
        vision_config=vision,
        video_token_index=VIDEO,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return LlavaOnevisionForConditionalGeneration(config)


_BUILD = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": llava_onevision,
}


def build(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model with the same random weights on every call, in eval mode on the CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _BUILD[family]()
    # Larger weights than at initialisation, so that what a token sees makes a difference in the logits.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.to(dtype).eval()


def _video_tokens(family: str, frames: int, words: Any) -> list[int]:
    if family == "llava_onevision":
        return [VIDEO] * (frames * 9 + 1)
    cells = (SIDE // 2) ** 2
    if family == "qwen3_vl":  # a timestamp in front of every frame
        return [token for _ in range(frames) for token in (*words(3), START, *[VIDEO] * cells, END)]
    return [START, *[VIDEO] * (frames * cells), END]


def prompt(
    family: str, frames: int | tuple[int, ...] = 6, batch: int = 1, question: int = 5, seed: int = 0, images: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of ``generate``: some text, videos of so many frames (and images in front of them), a question."""
    generator = torch.Generator().manual_seed(seed)
    videos = (frames,) if isinstance(frames, int) else frames

    def words(count: int) -> list[int]:
        return torch.randint(10, 90, (count,), generator=generator).tolist()

    row = words(4)
    for _ in range(images):
        row += [START, *[IMAGE] * (SIDE // 2) ** 2, END]
    for count in videos:
        row += _video_tokens(family, count, words) + words(2)
    row += words(question)
    if question < 0:
        row = row[:-2]
    ids = torch.tensor([row] * batch)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family == "llava_onevision":
        pixels = _scenes(torch.randn(sum(videos), 3, LLAVA_SIDE, LLAVA_SIDE, generator=generator))
        inputs["pixel_values_videos"] = pixels.repeat(batch, 1, 1, 1, 1)
        return inputs
    inputs["mm_token_type_ids"] = torch.where(ids == VIDEO, 2, torch.where(ids == IMAGE, 1, 0))
    size = 3 * 2 * 4 * 4
    pixels = _scenes(torch.randn(sum(videos), SIDE * SIDE * size, generator=generator)).reshape(-1, size)
    inputs["pixel_values_videos"] = pixels.repeat(batch, 1)
    inputs["video_grid_thw"] = torch.tensor([[count, SIDE, SIDE] for count in videos] * batch)
    if images:
        inputs["pixel_values"] = torch.randn(images * SIDE * SIDE, size, generator=generator).repeat(batch, 1)
        inputs["image_grid_thw"] = torch.tensor([[1, SIDE, SIDE]] * images * batch)
    return inputs


def _scenes(frames: torch.Tensor) -> torch.Tensor:
    """Frames that hold still for three at a time, with a little noise, so that there are scenes to find."""
    held = frames[torch.arange(len(frames)) // 3 * 3]
    return held + 0.05 * frames


def left_padded(inputs: dict[str, torch.Tensor], pads: int = 3) -> dict[str, torch.Tensor]:
    """A batch whose first row has ``pads`` padding tokens on the left where the others have more text."""
    padded = dict(inputs)
    rows = inputs["input_ids"].shape[0]
    text = torch.arange(20, 20 + pads).expand(rows, pads).clone()
    text[0] = 0
    mask = torch.ones_like(text)
    mask[0] = 0
    padded["input_ids"] = torch.cat([text, inputs["input_ids"]], 1)
    padded["attention_mask"] = torch.cat([mask, inputs["attention_mask"]], 1)
    if "mm_token_type_ids" in inputs:
        padded["mm_token_type_ids"] = torch.cat([torch.zeros_like(text), inputs["mm_token_type_ids"]], 1)
    return padded
