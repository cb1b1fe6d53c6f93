"""The model before training: a Qwen2-VL of less than two million parameters, and its real processor files.

The tokenizer is a small word-level one. Nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from segmo.sceneqa.questions import WORDS
from segmo.sceneqa.render import HEIGHT, PICTURES, WIDTH

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO, UNKNOWN = "<|image_pad|>", "<|video_pad|>", "<|unknown|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO, UNKNOWN)
PATCH, MERGE = 8, 2

# One turn: the video, then the question. The answer is the word after the end of the turn.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}" + TURN_START + "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    '{%- if part.type == "video" -%}' + VISION_START + VIDEO + VISION_END + "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}" + TURN_END + "{%- endfor -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the questions and answers, and Qwen's special tokens."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        additional_special_tokens=list(SPECIAL[1:-1]),
        padding_side="left",
    )
    return wrapped


def build_processor() -> Qwen2VLProcessor:
    """The transformers processor: frames as they are, 8-pixel patches, four of them to a token."""
    size = {"shortest_edge": HEIGHT * WIDTH, "longest_edge": 4096 * HEIGHT * WIDTH}
    vision: dict[str, Any] = {
        "size": size,
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": PICTURES,
        "do_resize": False,
        "image_mean": [0.3, 0.3, 0.3],
        "image_std": [0.3, 0.3, 0.3],
    }
    build: Any = Qwen2VLProcessor  # its constructor has no types
    processor: Qwen2VLProcessor = build(
        image_processor=Qwen2VLImageProcessor(**vision),
        video_processor=Qwen2VLVideoProcessor(**vision, do_sample_frames=False),
        tokenizer=build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def build_config(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, vision_hidden: int, vision_depth: int
) -> Qwen2VLConfig:
    """A Qwen2-VL configuration with token ids from the tokenizer."""
    video, image, start, end = tokenizer.convert_tokens_to_ids([VIDEO, IMAGE, VISION_START, VISION_END])
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 4096,
        # Half of the rotary pairs follow time. With this base the slowest of them turns once in about 1,000
        # frames.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [8, 4, 4]},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": vision_depth,
        "embed_dim": vision_hidden,
        "hidden_size": hidden,
        "num_heads": vision_hidden // 32,
        "mlp_ratio": 3,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": PICTURES,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        video_token_id=video,
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
        segmo_text_positions="grid",  # where text behind a video stands inside vLLM: as in training
    )


def build_model(config: Qwen2VLConfig, seed: int) -> Qwen2VLForConditionalGeneration:
    """A model with random weights, the same ones for the same seed."""
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    for layer in model.model.language_model.layers:
        _match_content(layer)
    return model


@torch.no_grad()
def _match_content(layer: Any) -> None:
    """Attention that starts out looking at tokens like the own one: query weights equal key weights.

    Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (2023). Measured on five scenes: the
    attention paid to the right scene rises from the first updates on, and without it had not moved after 200.
    """
    for part in layer.modules():
        if isinstance(part, torch.nn.Linear):
            part.weight.mul_(4)  # from the usual 0.02, which suits a hidden size in the thousands
    attention = layer.self_attn
    key = attention.k_proj.weight.unflatten(0, (-1, attention.head_dim))
    repeats = attention.num_key_value_groups
    attention.q_proj.weight.copy_(key.repeat_interleave(repeats, dim=0).flatten(0, 1))


@torch.no_grad()
def share_direction(model: Qwen2VLForConditionalGeneration, seed: int) -> None:
    """Add one random vector, as long as an embedding, to all word embeddings.

    The embeddings of trained language models share a direction too. With attention that starts at content matching it
    is what makes a question's last token look at the question's words; without it, updates did not get there.
    """
    embeddings: Any = model.model.language_model.embed_tokens.weight
    shared = torch.randn(embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
    embeddings.add_(0.06 * shared)
