"""Tiny Video LLMs of every family with real processors, as folders that ``from_pretrained`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import torch
from transformers import (
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from segmo.demo.processor import CHAT_TEMPLATE, IMAGE, VIDEO, VISION_END, VISION_START, build_tokenizer

FAMILIES = models.FAMILIES
_CLASSES = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
_SIZE = {"shortest_edge": 64, "longest_edge": 48 * 32}
_PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": _SIZE}


def _qwen_processor(family: str) -> Any:
    if family == "qwen3_vl":  # its limit is on the whole video
        size = {"shortest_edge": 64, "longest_edge": 48 * 32 * 64}
        video: Any = Qwen3VLVideoProcessor(**_PATCHES | {"size": size})
    else:
        video = Qwen2VLVideoProcessor(**_PATCHES, cap_pixels_per_frame=False)
    image: Any = Qwen2VLImageProcessor(**_PATCHES)
    build: Any = _CLASSES[family]
    return build(image_processor=image, video_processor=video, tokenizer=build_tokenizer(), chat_template=CHAT_TEMPLATE)


def _llava_processor() -> Any:
    side = {"height": models.LLAVA_SIDE, "width": models.LLAVA_SIDE}
    build: Any = LlavaOnevisionProcessor
    template = CHAT_TEMPLATE.replace(VISION_START + VIDEO + VISION_END, VIDEO)
    return build(
        image_processor=LlavaOnevisionImageProcessor(size=side),
        video_processor=LlavaOnevisionVideoProcessor(size=side),
        tokenizer=build_tokenizer(),
        num_image_tokens=(models.LLAVA_SIDE // 4) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template,
        image_token=IMAGE,
        video_token=VIDEO,
    )


def write_model(family: str, folder: Path) -> Path:
    """The model and its processor in a folder; the same random weights on every call."""
    processor = _llava_processor() if family == "llava_onevision" else _qwen_processor(family)
    tokenizer = processor.tokenizer
    config = models.build(family).config
    video, image, start, end = tokenizer.convert_tokens_to_ids([VIDEO, IMAGE, VISION_START, VISION_END])
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.eos_token_id = config.text_config.pad_token_id = None
    config.video_token_id, config.image_token_id = video, image
    config.vision_start_token_id, config.vision_end_token_id = start, end
    torch.manual_seed(0)
    model = type(models.build(family))(config)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
