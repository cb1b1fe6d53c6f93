"""Tiny random models of the other families, as folders that vLLM and transformers both load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

WORDS = 96
MARKED = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>", "<|end|>"]
MEDIA = ["<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]
VIDEO, IMAGE, START, END = range(5, 9)
LETTERS = sorted({*"<0123456789. seconds>".replace(" ", "Ġ")})  # of a time; the space as tokenizers write it
SIDE = 16  # pixels of a frame: 4 x 4 patches, 2 x 2 tokens
_TOKENS = {"video_token_id": VIDEO, "image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
HALF = [0.5, 0.5, 0.5]
HIDDEN, LAYERS = 128, 4


def _vision(hidden: int, **more: Any) -> dict[str, Any]:
    half = min(hidden // 2, 128)  # small also in front of a decoder that is not
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
        "vocab_size": WORDS + len(LETTERS),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 32768,
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


def _qwen3_vl_moe(hidden: int, layers: int) -> Any:
    vision = _vision(hidden, num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    rope = {"mrope_interleaved": True}
    text = _text(hidden, layers, [8, 4, 4], head_dim=32, rope=rope, norm_topk_prob=True, **_experts(hidden))
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision, **_TOKENS))


def _experts(hidden: int) -> dict[str, Any]:
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 3 * hidden // 4}


def _qwen3_5(hidden: int, layers: int, build: Any = Qwen3_5ForConditionalGeneration, **more: Any) -> Any:
    """Every second layer with linear attention."""
    heads = {
        "linear_num_key_heads": hidden // 64,
        "linear_num_value_heads": hidden // 32,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    }
    rope = {"mrope_interleaved": True, "partial_rotary_factor": 0.25}
    text = _text(hidden, layers, [4, 2, 2], head_dim=64, rope=rope, full_attention_interval=2, **heads, **more)
    vision = _vision(hidden, num_position_embeddings=64)
    return build(build.config_class(text_config=text, vision_config=vision, **_TOKENS))


def _qwen3_5_moe(hidden: int, layers: int) -> Any:
    shared = {"shared_expert_intermediate_size": hidden // 2}
    every = {**_experts(hidden), "num_experts_per_tok": 4}  # in bf16 a choice between experts hangs on the last bits
    return _qwen3_5(hidden, layers, Qwen3_5MoeForConditionalGeneration, **every, **shared)


BUILD = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
}


def _tokenizer() -> Any:
    """One token for each word, and one for each letter of the times of frames."""
    words = [*MARKED, *MEDIA, *(f"w{at}" for at in range(len(MARKED) + len(MEDIA), WORDS))]
    vocabulary = {word: at for at, word in enumerate([*words, *LETTERS])}
    found = Qwen3_5Tokenizer(vocabulary, [], pad_token=MARKED[0], unk_token=MARKED[3], eos_token=MARKED[4])
    found.add_tokens([AddedToken(word, special=word[0] == "<", lstrip=True) for word in words])
    return found


CHAT = (
    "{% for message in messages %}<|im_start|>{% for part in message.content %}{% if part.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %} {{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
)


def _as_published(file: Path) -> None:
    """Experts' weights of Qwen3-VL as the published checkpoints hold them: rows for inputs."""
    weights = load_file(file)
    turned = {name: w.transpose(1, 2).contiguous() for name, w in weights.items() if ".experts." in name}
    save_file(weights | turned, file, metadata={"format": "pt"})


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
    else:  # one mean and deviation for both, as checkpoints have: vLLM reads those of images alone
        image = Qwen2VLImageProcessor(image_mean=HALF, image_std=HALF, **sizes)
        video = Qwen3VLVideoProcessor(do_sample_frames=False, **sizes)
        processor = Qwen3VLProcessor(image, _tokenizer(), video)
    processor.chat_template = CHAT
    model.save_pretrained(folder)
    if family == "qwen3_vl_moe":
        _as_published(folder / "model.safetensors")
    processor.save_pretrained(folder)
    return model, processor
