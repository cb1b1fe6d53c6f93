"""What transformers' processors are built of without a hub, for every Video LLM family that has one: small pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import transformers

from segmo.demo.processor import IMAGE, VIDEO, VISION_END, VISION_START

_PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
_STILL = {"patch_size": 4, "merge_size": 2}
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
        config: changed fields of the config: "part.field" and value. ids: its fields that are ids of tokens.
        audio: the processor takes a feature extractor too.
        together: it takes videos of different lengths in one call.
        call: further arguments of a call.
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
    ids: dict[str, str] = field(default_factory=dict)
    audio: Callable[[], Any] | None = None
    together: bool = True
    call: dict[str, Any] = field(default_factory=dict)


def _whisper() -> Any:
    return transformers.WhisperFeatureExtractor(feature_size=8, n_fft=64, chunk_length=1)


_OMNI_TOKENS = {
    "audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    "vision_bos_token": VISION_START, "vision_eos_token": VISION_END,
}  # fmt: skip
_OMNI = Folder(
    "Qwen2_5OmniProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor",
    {**_PATCHES, "patch_size": 14, "cap_pixels_per_frame": False}, tokens=_OMNI_TOKENS, audio=_whisper,
    # This processor has a least size of a frame of its own.
    config={"vision_config.patch_size": 14, "vision_config.window_size": 56},
)  # fmt: skip
_MINICPM_TOKENS = {
    "image_start_token": "<image>", "image_end_token": "</image>", "slice_start_token": "<slice>",
    "slice_end_token": "</slice>", "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip
_MINICPM = Folder(
    "MiniCPMV4_6Processor", "MiniCPMV4_6ImageProcessor", "MiniCPMV4_6VideoProcessor",
    {"patch_size": 4, "scale_resolution": 32, "slice_mode": False}, tokens=_MINICPM_TOKENS, placeholder=VIDEO,
    config={"vision_config.insert_layer_id": 0},
)  # fmt: skip
_GEMMA = Folder(
    "Gemma4Processor", "Gemma4ImageProcessor", "Gemma4VideoProcessor",
    {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70},
    tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "audio_token": "<audio>",
            "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"},
    placeholder="<|video|>", config={"vision_config.position_embedding_size": 64},
    audio=lambda: transformers.Gemma4AudioFeatureExtractor(),
)  # fmt: skip
_QWEN3_VL = Folder("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor", _QWEN3, _QWEN2)
_QWEN2_VL = Folder("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", _QWEN2)
_GLM_IDS = {"video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>"}
_GLM = Folder(
    "Glm46VProcessor", "Glm46VImageProcessor", "Glm46VVideoProcessor", _QWEN3, _QWEN2,
    tokens={"start": "<|begin_of_image|>", "end": "<|end_of_image|>", "video_start": "<|begin_of_video|>",
            "video_end": "<|end_of_video|>"},
    placeholder="<|begin_of_video|>" + VIDEO + "<|end_of_video|>", ids=_GLM_IDS,
)  # fmt: skip
_MUSE = Folder(
    "MuseGlimmerProcessor", "MuseGlimmerImageProcessor", "MuseGlimmerVideoProcessor",
    {**_PATCHES, "max_video_frame_tokens": 24}, _STILL,
    tokens={"image_token": "<|patch|>", "video_token": "<|video|>", "image_start": "<|image_start|>",
            "image_end": "<|image_end|>", "video_start": "<|vid_start|>", "video_end": "<|vid_end|>",
            "between": "<|vid_frame_separator|>", "audio_token": "<|audio|>"},
    placeholder="<|video|>", call={"return_metadata": True},
)  # fmt: skip
_COMPASS = {
    "image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>", "vision_start_token": "<|VISION_START|>",
    "vision_end_token": "<|VISION_END|>",
}  # fmt: skip
_ERNIE = {
    "image_start_token": "<|IMAGE_START|>", "image_end_token": "<|IMAGE_END|>",
    "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>",
}  # fmt: skip
_MOLMO = {
    "video_token": "<|video|>", "image_token": "<|image|>", "patch": "<im_patch>", "column": "<im_col>",
    "start": "<im_start>", "low_start": "<low_res_im_start>", "frame_start": "<frame_start>", "end": "<im_end>",
    "frame_end": "<frame_end>", "low": "<im_low>",
}  # fmt: skip
_KIMI = {
    "image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>", "begin": "<|media_begin|>",
    "content": "<|media_content|>", "end": "<|media_end|>",
}  # fmt: skip

PROCESSORS: dict[str, Folder] = {
    "qwen3_5": _QWEN3_VL,
    "qwen3_vl_moe": _QWEN3_VL,
    "qwen2_5_omni": _OMNI,
    "glm46v": _GLM,
    "internvl": Folder(
        "InternVLProcessor", "GotOcr2ImageProcessor", "InternVLVideoProcessor", {"size": _SQUARE},
        more={"image_seq_length": 4}, placeholder=VIDEO, together=False,
        tokens={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": IMAGE},
    ),
    "gemma4": _GEMMA,
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
        {"size": {"shortest_edge": 16}, "crop_size": _SQUARE}, together=False,
        more={"patch_size": 4, "vision_feature_select_strategy": "default"}, placeholder=VIDEO,
    ),
    "minicpmv4_6": _MINICPM,
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": replace(_QWEN2_VL, processor="Qwen2_5_VLProcessor"),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_5_moe": _QWEN3_VL,
    "qwen4_exp": _QWEN3_VL,
    "qwen3_omni_moe": replace(
        _OMNI, processor="Qwen3OmniMoeProcessor", config={"vision_config.patch_size": 14},
        settings={**_OMNI.settings, "size": {"shortest_edge": 64, "longest_edge": 9408}},
    ),
    "cosmos3_omni": _QWEN3_VL,
    "cosmos3_edge": replace(
        _QWEN3_VL, processor="Cosmos3EdgeProcessor", image="Cosmos3EdgeImageProcessor",
        video="Cosmos3EdgeVideoProcessor", settings={**_QWEN3, "temporal_patch_size": 1},
        call={"return_metadata": True, "return_mm_token_type_ids": True},
    ),
    "lfm3_vl": replace(_QWEN3_VL, processor="Lfm3VlProcessor"),
    "dots3_note": replace(
        _QWEN3_VL, processor="Dots3NoteProcessor", settings={**_QWEN3, "temporal_patch_size": 1}, audio=_whisper,
        tokens={"image_token": "<|imgpad|>", "audio_token": "<|audio_comp_pad|>"},
    ),
    "hyperclovax_vision_v2": replace(_QWEN2_VL, processor="HyperCLOVAXVisionV2Processor"),
    "exaone4_5": replace(_QWEN2_VL, processor="Exaone4_5_Processor"),
    "cohere_compass": Folder(
        "CohereCompassProcessor", "CohereCompassImageProcessor", "CohereCompassVideoProcessor", _QWEN2,
        tokens=_COMPASS, placeholder="<|VISION_START|><|VIDEO_PAD|><|VISION_END|>",
    ),
    "glm4v": replace(
        _GLM, processor="Glm4vProcessor", image="Glm4vImageProcessor", video="Glm4vVideoProcessor"
    ),
    "glm4v_moe": replace(
        _GLM, processor="Glm4vProcessor", image="Glm4vImageProcessor", video="Glm4vVideoProcessor"
    ),
    "glmga": replace(_GLM, image="GlmgaImageProcessor", video="GlmgaVideoProcessor"),
    "glm5_next": replace(
        _GLM, processor="Glm5NextProcessor", image="Glm5NextImageProcessor", video="Glm5NextVideoProcessor",
        settings=_PATCHES, still=None,
    ),
    "llava_onevision": Folder(
        "LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", "LlavaOnevisionVideoProcessor",
        {"size": {"height": 24, "width": 24}}, placeholder=VIDEO, together=False,
        more={"num_image_tokens": 36, "vision_feature_select_strategy": "full"},
    ),
    "video_llava": Folder(
        "VideoLlavaProcessor", "VideoLlavaImageProcessor", "VideoLlavaVideoProcessor",
        {"size": {"shortest_edge": 16}, "crop_size": _SQUARE}, more={"patch_size": 4}, placeholder=VIDEO,
        together=False,
    ),
    "perception_lm": Folder(
        "PerceptionLMProcessor", "PerceptionLMImageProcessor", "PerceptionLMVideoProcessor", {"size": _SQUARE},
        {"tile_size": 16}, more={"patch_size": 4, "pooling_ratio": 1}, placeholder=VIDEO, together=False,
    ),
    "ernie4_5_vl_moe": Folder(
        "Ernie4_5_VLMoeProcessor", "Ernie4_5_VLMoeImageProcessor", "Ernie4_5_VLMoeVideoProcessor",
        {**_QWEN3, "draw_on_frames": False}, {**_STILL, "size": _QWEN2["size"]}, tokens=_ERNIE,
        placeholder="<|VIDEO_START|>" + VIDEO + "<|VIDEO_END|>",
    ),
    "gemma4_unified": replace(
        _GEMMA, processor="Gemma4UnifiedProcessor", image="Gemma4UnifiedImageProcessor",
        video="Gemma4UnifiedVideoProcessor", config={"vision_config.mm_posemb_size": 64},
        audio=lambda: transformers.Gemma4UnifiedAudioFeatureExtractor(),
    ),
    "minicpmv4_7": replace(_MINICPM, processor="MiniCPMV4_7Processor"),
    "molmo2": Folder(
        "Molmo2Processor", "Molmo2ImageProcessor", "Molmo2VideoProcessor",
        {"patch_size": 4, "size": _SQUARE, "pooling_size": [2, 2]}, tokens=_MOLMO, placeholder="<|video|>",
        ids={"image_patch_id": "<im_patch>"}, together=False,
    ),
    "muse_glimmer": _MUSE,
    "muse_spark": replace(_MUSE, processor="MuseSparkProcessor", audio=_whisper),
    # Chunks of one frame: transformers' model cannot split the features of longer ones.
    "kimi_k25": Folder(
        "Kimi_K25Processor", "Kimi_K25ImageProcessor", "Kimi_K25VideoProcessor",
        {**_PATCHES, "temporal_patch_size": 1, "max_patches": 64}, tokens=_KIMI,
        placeholder="<|kimi_k25_video_placeholder|>", together=False,
    ),
}  # fmt: skip
