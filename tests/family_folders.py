"""Tiny Video LLMs of further families with their own processors, as folders that ``from_pretrained`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_processors import PROCESSORS
from video_families import FAMILIES, expect_family, instantiate, tiny_config

from segmo.demo.processor import CHAT_TEMPLATE, IMAGE, VIDEO, VISION_END, VISION_START, build_tokenizer

# The families that are read from folders, asked and given to lmms in tests.
FOLDERS = {
    family: PROCESSORS[family]
    for family in (
        *("qwen3_5", "qwen3_vl_moe", "qwen2_5_omni", "glm46v", "internvl", "gemma4", "smolvlm", "video_llama_3"),
        *("llava_next_video", "minicpmv4_6"),
    )
}


def _class(name: str) -> Any:
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


def build_processor(family: str) -> Any:
    """The family's processor, of small frames and a small vocabulary; the test skips where transformers has none."""
    expect_family(family)
    folder = PROCESSORS[family]
    tokenizer = build_tokenizer()
    named = {"image_token": IMAGE, "video_token": VIDEO, **folder.tokens}
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        padding_side="left",
        extra_special_tokens=named,
    )
    still = folder.settings if folder.still is None else folder.still
    parts = {
        "image_processor": _class(folder.image)(**still),
        "video_processor": _class(folder.video)(**folder.settings),
        "tokenizer": tokenizer,
        "chat_template": CHAT_TEMPLATE.replace(VISION_START + VIDEO + VISION_END, folder.placeholder),
    }
    if folder.audio:
        parts["feature_extractor"] = folder.audio()
    return _class(folder.processor)(**parts, **folder.more)


def build_model(family: str, processor: Any) -> Any:
    """The tiny model that goes with a family's processor, with the same random weights on every call."""
    tokenizer, folder = processor.tokenizer, PROCESSORS[family]
    config = tiny_config(family, FAMILIES[family])
    text = config.get_text_config()
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if getattr(text, name, None) is not None:
            setattr(text, name, len(tokenizer))
    tokens = {name: getattr(processor, f"{name}_token", None) for name in ("video", "image", "audio")}
    named = {**tokens, "vision_start": VISION_START, "vision_end": VISION_END}
    ids = {f"{name}_token_{end}": token for name, token in named.items() for end in ("id", "index")} | folder.ids
    for name, token in ids.items():
        if token is not None and getattr(config, name, None) is not None:
            setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    for path, value in folder.config.items():
        part, _, name = path.rpartition(".")
        setattr(getattr(config, part) if part else config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = instantiate(family, config)
    if FAMILIES[family].mend:
        FAMILIES[family].mend(model)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model.eval()


def write_folder(family: str, folder: Path) -> Path:
    """The model and its processor in a folder; the same random weights on every call."""
    processor = build_processor(family)
    build_model(family, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
