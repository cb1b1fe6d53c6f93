"""Tiny CLIP and SigLIP models of the real transformers classes, with tokenizers that read any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

SIDE = 16  # pixels of a picture's side
START, END, PAD = 256, 257, 258
_TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TOWER, "image_size": SIDE, "patch_size": 8}


def _text(longest: int) -> dict[str, Any]:
    tokens = {"vocab_size": 259, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    return {**_TOWER, **tokens, "max_position_embeddings": longest, "projection_size": 32}


def _tokenizer(start: bool) -> PreTrainedTokenizerFast:
    """One token per byte, an end token, and a start token for CLIP."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary.update({"<start>": START, "<end>": END, "<pad>": PAD})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "<start> $A <end>" if start else "$A <end>"
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<start>", START), ("<end>", END)])
    wrap: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<pad>"
    )
    return wrapped


def save_image_text_model(kind: str, folder: Path) -> Path:
    """A folder that ``from_pretrained`` reads, as a downloaded checkpoint would be."""
    size = {"height": SIDE, "width": SIDE}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "clip":
            config = CLIPConfig(text_config=_text(77), vision_config=dict(_VISION), projection_dim=32)
            model: Any = CLIPModel(config)
            processor: Any = CLIPImageProcessor(size=size, do_center_crop=False)
        else:
            model = SiglipModel(SiglipConfig(text_config=_text(64), vision_config=dict(_VISION)))
            processor = SiglipImageProcessor(size=size)
    model.save_pretrained(folder)
    _tokenizer(kind == "clip").save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
