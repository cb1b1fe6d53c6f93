"""Tiny random models of the other families, as folders that vLLM and transformers both load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

WORDS = 96
MARKED = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>", "<|end|>"]
MEDIA = ["<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]
VIDEO, IMAGE, START, END = range(5, 9)
SIDE = 16  # pixels of a frame: 4 x 4 patches, 2 x 2 tokens
_TOKENS = {"video_token_id": VIDEO, "image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
HIDDEN, LAYERS = 128, 4


def _vision(hidden: int, **more: Any) -> dict[str, Any]:
    half = hidden // 2
    sizes = {
        "hidden_size": half,
        "intermediate_size": 3 * half // 2,
        "num_heads": half // 32,
        "out_hidden_size": hidden,
    }
    patches = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {"depth": 2, **sizes, **patches, **more}


def _text(hidden: int, layers: int, section: list[int], **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **more.pop("rope", {})}
    return {
        "vocab_size": WORDS,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": 4,
        "pad_token_id": 0,
        "rope_parameters": rope,
        **more,
    }


def _qwen2_5_vl(hidden: int, layers: int) -> Any:
    vision = _vision(hidden, window_size=16, fullatt_block_indexes=[0], tokens_per_second=2)
    config = Qwen2_5_VLConfig(
        text_config=_text(hidden, layers, [8, 4, 4]), vision_config=vision, segmo_text_positions="grid", **_TOKENS
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(hidden: int, layers: int) -> Any:
    vision = _vision(hidden, num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    text = _text(hidden, layers, [8, 4, 4], head_dim=32, rope={"mrope_interleaved": True})
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **_TOKENS))


BUILD = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}


def _tokenizer() -> Any:
    words = {word: at for at, word in enumerate([*MARKED, *MEDIA])}
    words |= {f"w{at}": at for at in range(len(words), WORDS)}
    found = Tokenizer(models.WordLevel(words, unk_token="<|unknown|>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.add_special_tokens([AddedToken(word, normalized=False) for word in [*MARKED, *MEDIA]])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<|pad|>", unk_token="<|unknown|>", eos_token="<|end|>"
    )


CHAT = (
    "{% for message in messages %}<|im_start|>{% for part in message.content %}{% if part.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %} {{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
)


def build(family: str, folder: Path, hidden: int = HIDDEN, layers: int = LAYERS) -> tuple[Any, Any]:
    """A model and its processor, which are saved in a folder."""
    torch.manual_seed(0)
    model = BUILD[family](hidden, layers).eval()
    with torch.no_grad():  # larger weights than at initialisation, so that what a token sees makes a difference
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    sizes: dict[str, Any] = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "do_resize": False}
    image = Qwen2VLImageProcessor(**sizes)
    if family == "qwen2_5_vl":
        video = Qwen2VLVideoProcessor(do_sample_frames=False, **sizes)
        processor = Qwen2_5_VLProcessor(image, _tokenizer(), video)
    else:
        video = Qwen3VLVideoProcessor(do_sample_frames=False, **sizes)
        processor = Qwen3VLProcessor(image, _tokenizer(), video)
    processor.chat_template = CHAT
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor
