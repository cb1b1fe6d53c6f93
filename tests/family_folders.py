"""Tiny Video LLMs of further families with their own processors, as folders that ``from_pretrained`` reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from video_families import FAMILIES, tiny_config

from segmo.demo.processor import CHAT_TEMPLATE, IMAGE, VIDEO, VISION_END, VISION_START, build_tokenizer

_PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
_QWEN2 = {**_PATCHES, "size": {"shortest_edge": 64, "longest_edge": 48 * 32}}
_QWEN3 = {**_PATCHES, "size": {"shortest_edge": 64, "longest_edge": 48 * 32 * 64}}
_SQUARE = {"height": 16, "width": 16}


@dataclass(frozen=True)
class Folder:
    """What a family's processor is built of.

    Attributes:
        processor, image, video: names of transformers' classes.
        settings: of the image and the video processor. still: of the image processor, where they differ.
        more: further arguments of the processor.
        tokens: names under which the processor looks tokens up, beside those for an image and a video.
        placeholder: what the chat template writes for a video.
        config: changed fields of the config: "part.field" and value.
        audio: the processor takes a feature extractor too.
    """

    processor: str
    image: str
    video: str
    settings: dict[str, Any]
    still: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    placeholder: str = VISION_START + VIDEO + VISION_END
    config: dict[str, Any] = field(default_factory=dict)
    audio: Callable[[], Any] | None = None


def _whisper() -> Any:
    return transformers.WhisperFeatureExtractor(feature_size=8, n_fft=64, chunk_length=1)


_OMNI_TOKENS = {
    "audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    "vision_bos_token": VISION_START, "vision_eos_token": VISION_END,
}  # fmt: skip
_MINICPM_TOKENS = {
    "image_start_token": "<image>", "image_end_token": "</image>", "slice_start_token": "<slice>",
    "slice_end_token": "</slice>", "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip

FOLDERS: dict[str, Folder] = {
    "qwen3_5": Folder("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor", _QWEN3, _QWEN2),
    "qwen3_vl_moe": Folder("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor", _QWEN3, _QWEN2),
    "qwen2_5_omni": Folder(
        "Qwen2_5OmniProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor",
        {**_PATCHES, "patch_size": 14, "cap_pixels_per_frame": False}, tokens=_OMNI_TOKENS, audio=_whisper,
        # This processor has a least size of a frame of its own.
        config={"vision_config.patch_size": 14, "vision_config.window_size": 56},
    ),
    "glm46v": Folder(
        "Glm46VProcessor", "Glm46VImageProcessor", "Glm46VVideoProcessor", _QWEN3, _QWEN2,
        tokens={"start": "<|begin_of_image|>", "end": "<|end_of_image|>", "video_start": "<|begin_of_video|>",
                "video_end": "<|end_of_video|>"},
        placeholder="<|begin_of_video|>" + VIDEO + "<|end_of_video|>",
    ),
    "internvl": Folder(
        "InternVLProcessor", "GotOcr2ImageProcessor", "InternVLVideoProcessor", {"size": _SQUARE},
        more={"image_seq_length": 4}, placeholder=VIDEO,
        tokens={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": IMAGE},
    ),
    "gemma4": Folder(
        "Gemma4Processor", "Gemma4ImageProcessor", "Gemma4VideoProcessor",
        {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70},
        tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "audio_token": "<audio>",
                "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"},
        placeholder="<|video|>", config={"vision_config.position_embedding_size": 64},
        audio=lambda: transformers.Gemma4AudioFeatureExtractor(),
    ),
    "smolvlm": Folder(
        "SmolVLMProcessor", "SmolVLMImageProcessor", "SmolVLMVideoProcessor",
        {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}}, more={"image_seq_len": 4},
        tokens={"video_token": "<video>", "fake_image_token": "<fake_token_around_image>",
                "global_image_token": "<global-img>"},
        placeholder="<video>",
    ),
    "video_llama_3": Folder(
        "VideoLlama3Processor", "VideoLlama3ImageProcessor", "VideoLlama3VideoProcessor",
        {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 1,
         "size": {"shortest_edge": 64, "longest_edge": 48 * 32}}, placeholder=VIDEO,
    ),
    "llava_next_video": Folder(
        "LlavaNextVideoProcessor", "LlavaNextImageProcessor", "LlavaNextVideoVideoProcessor",
        {"size": {"shortest_edge": 16}, "crop_size": _SQUARE},
        more={"patch_size": 4, "vision_feature_select_strategy": "default"}, placeholder=VIDEO,
    ),
    "minicpmv4_6": Folder(
        "MiniCPMV4_6Processor", "MiniCPMV4_6ImageProcessor", "MiniCPMV4_6VideoProcessor",
        {"patch_size": 4, "scale_resolution": 32, "slice_mode": False}, tokens=_MINICPM_TOKENS, placeholder=VIDEO,
    ),
}  # fmt: skip


def build_processor(family: str) -> Any:
    """The family's processor, of small frames and a small vocabulary."""
    folder = FOLDERS[family]
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
        "image_processor": getattr(transformers, folder.image)(**still),
        "video_processor": getattr(transformers, folder.video)(**folder.settings),
        "tokenizer": tokenizer,
        "chat_template": CHAT_TEMPLATE.replace(VISION_START + VIDEO + VISION_END, folder.placeholder),
    }
    if folder.audio:
        parts["feature_extractor"] = folder.audio()
    return getattr(transformers, folder.processor)(**parts, **folder.more)


def write_folder(family: str, folder: Path) -> Path:
    """The model and its processor in a folder; the same random weights on every call."""
    processor = build_processor(family)
    tokenizer = processor.tokenizer
    config = tiny_config(family, FAMILIES[family])
    text = config.get_text_config()
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if getattr(text, name, None) is not None:
            setattr(text, name, len(tokenizer))
    tokens = {name: getattr(processor, f"{name}_token", None) for name in ("video", "image", "audio")}
    for name, token in {**tokens, "vision_start": VISION_START, "vision_end": VISION_END}.items():
        for field_name in (f"{name}_token_id", f"{name}_token_index"):
            if token is not None and getattr(config, field_name, None) is not None:
                setattr(config, field_name, tokenizer.convert_tokens_to_ids(token))
    for path, value in FOLDERS[family].config.items():
        part, _, name = path.rpartition(".")
        setattr(getattr(config, part) if part else config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
