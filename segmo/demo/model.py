"""A Qwen2.5-VL of the real architecture at a size for the demo, with RANDOM weights.

What it answers means nothing, and neither does the relevance that it gives a scene. The work is real all the
same: the same graph, the same layer shapes as Qwen2-0.5B (fewer of them), and vision features that are alike
where the pixels are alike, so that scenes and repeated tokens are found in the video and not made up.
"""

from __future__ import annotations

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from segmo.bfloat16 import multiplies_bfloat16
from segmo.demo.processor import IMAGE, VIDEO, VISION_END, VISION_START

SEED = 0


def demo_config(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLConfig:
    """Four decoder layers of Qwen2-0.5B's shape, two vision layers, and token ids from the tokenizer."""
    tokenizer = processor.tokenizer
    video, image, start, end = tokenizer.convert_tokens_to_ids([VIDEO, IMAGE, VISION_START, VISION_END])
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 4,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": 2,
        "hidden_size": 320,
        "intermediate_size": 856,
        "num_heads": 4,
        "out_hidden_size": text["hidden_size"],
        "tokens_per_second": 2,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        video_token_id=video,
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )


def build_model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """The demo's model on the CPU, in bfloat16 where that is fast, in eval mode, the same weights on every call."""
    config = demo_config(processor)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.nn.Module.to(model, torch.bfloat16 if multiplies_bfloat16() else torch.float32)
    torch.nn.Module.train(model, False)
    return model
