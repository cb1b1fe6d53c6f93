"""Tiny random models of every Video LLM family of transformers, and video prompts for them without a processor.

One function shrinks a family's own default config: fields that say a size get a small one by their name (windows and
indices are shorter than the prompts, so that they leave keys out), and of layers there is one of each kind. What else a
family needs stands in its row of ``FAMILIES``.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from video_prompts import (
    AUDIO,
    END,
    IMAGE,
    SIDE,
    START,
    VIDEO,
    Prompt,
    frames_prompt,
    grid_prompt,
    noise,
    packed_prompt,
    patches_prompt,
    pooled_prompt,
    text_and_video,
)

_TEXT = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 4096, "sliding_window": 12, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "dense_intermediate_size": 96, "shared_intermediate_size": 32,
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 24,
    "index_head_dim": 16, "index_n_heads": 2, "index_topk": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "first_k_dense_replace": 1,
}  # fmt: skip
_VISION = {
    "depth": 1, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "out_hidden_size": 64,
    "num_position_embeddings": 64, "image_size": 16, "window_size": 16,
}  # fmt: skip
_TOKENS = {
    "video_token_id": VIDEO, "video_token_index": VIDEO, "image_token_id": IMAGE, "image_token_index": IMAGE,
    "audio_token_id": AUDIO, "audio_token_index": AUDIO, "vision_start_token_id": START, "vision_end_token_id": END,
    "video_start_token_id": START, "video_end_token_id": END, "image_start_token_id": START, "image_end_token_id": END,
}  # fmt: skip
_KINDS = ("layer_types", "mlp_layer_types")


@dataclass(frozen=True)
class Case:
    """What one family needs beyond the rules of this module.

    Attributes:
        text, vision, top: fields of the configs of the decoder, of the vision encoder, and of the whole.
        parts: other parts of the config: a part's name and its fields, None to leave it out.
        inputs: makes a prompt's tensors; called with (frames, seed).
        inner: the part of the config and the class that understand video, where the whole does more (Omni).
        mend: done to the built model, where transformers' own code cannot take a video.
        since: the release of transformers from which the family's own code was seen to take a video.
    """

    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    inputs: Callable[[int, int], Prompt] = lambda frames, seed: grid_prompt(frames, seed)
    inner: tuple[str, str] | None = None
    mend: Callable[[Any], None] | None = None
    since: str = "5.18"


def _mrope(section: list[int], **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **more}
    return {"rope_parameters": rope}


_QWEN2 = _mrope([2, 3, 3])
_QWEN3 = _mrope([4, 2, 2], mrope_interleaved=True)
_HYBRID = {"head_dim": 32, **_mrope([4, 2, 2], mrope_interleaved=True, partial_rotary_factor=0.5)}
_GLM = _mrope([2, 3, 3])
_HALF = _mrope([1, 1, 2])
_GEMMA = {
    "per_layer_config": {1: {"head_dim": 24}}, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96,
}  # fmt: skip
_GEMMA_VISION = {
    "model_type": "gemma4_vision", "pooling_kernel_size": 2, "position_embedding_size": 16,
}  # fmt: skip
_DOTS = {
    f"swa_{name}": value for name, value in {
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "head_dim": 24,
        "qk_nope_head_dim": 8, "v_head_dim": 24,
    }.items()
}  # fmt: skip
_MAMBA = {
    "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 16,
    "moe_shared_expert_intermediate_size": 32,
}  # fmt: skip
_DEEP = {"depth": 2, "deepstack_visual_indexes": [0, 1]}
_OMNI_TOKENS = {"vision_start_token_id": START, "vision_end_token_id": END}
_OMNI_PARTS: dict[str, dict[str, Any] | None] = {
    "audio_config": {
        "encoder_layers": 1,
        "d_model": 32,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "output_dim": 64,
        "downsample_hidden_size": 8,
    }
}


def _split_features(model: Any) -> None:
    """Nemotron-H-Omni's forward joins its video features with ``torch.cat``, which takes a tuple and gets a tensor."""
    encode = model.get_video_features

    @functools.wraps(encode)
    def tuple_of_features(*args: Any, **kwargs: Any) -> Any:
        out = encode(*args, **kwargs)
        out.pooler_output = tuple(out.pooler_output)
        return out

    model.get_video_features = tuple_of_features


def _grid(**more: Any) -> Callable[[int, int], Prompt]:
    return lambda frames, seed: grid_prompt(frames, seed, **more)


def _frames(**more: Any) -> Callable[[int, int], Prompt]:
    return lambda frames, seed: frames_prompt(frames, seed, **more)


FAMILIES: dict[str, Case] = {
    "qwen2_vl": Case(_QWEN2, {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}),
    "qwen2_5_vl": Case(_QWEN2, {"fullatt_block_indexes": [0]}),
    "qwen3_vl": Case(_QWEN3, _DEEP, inputs=_grid(tagged=True)),
    "qwen3_vl_moe": Case(_QWEN3, _DEEP, inputs=_grid(tagged=True)),
    "qwen3_5": Case(_HYBRID, inputs=_grid(tagged=True)),
    "qwen3_5_moe": Case(_HYBRID, inputs=_grid(tagged=True)),
    "qwen4_exp": Case(
        {
            **_HYBRID,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 32,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "hc_lowrank": 16,
        },
        inputs=_grid(tagged=True),
    ),
    "qwen2_5_omni": Case(
        _QWEN2,
        {"fullatt_block_indexes": [0]},
        parts=_OMNI_PARTS,
        top=_OMNI_TOKENS,
        inputs=_grid(video_second_per_grid=torch.ones(1)),
        inner=("qwen2_5_omni_thinker", "Qwen2_5OmniThinkerForConditionalGeneration"),
    ),
    "qwen3_omni_moe": Case(
        _QWEN3,
        _DEEP,
        parts=_OMNI_PARTS,
        top=_OMNI_TOKENS,
        inputs=_grid(video_second_per_grid=torch.ones(1)),
        inner=("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinkerForConditionalGeneration"),
    ),
    "llava_onevision": Case(
        {"model_type": "qwen2"},
        {"image_size": 24},
        {"vision_feature_layer": -1},
        inputs=lambda frames, seed: {
            **text_and_video(frames, seed, tagged=False, cells=9, trailing=1),
            "pixel_values_videos": noise(seed, frames, 3, 24, 24)[None],
        },
    ),
    "llava_next_video": Case(inputs=_frames()),
    "video_llava": Case(inputs=_frames(cells=17)),
    "video_llama_3": Case(inputs=_grid(tagged=True, temporal=1, video_merge_sizes=torch.tensor([2]))),
    "internvl": Case(
        vision={"image_size": [16, 16], "patch_size": [4, 4]},
        inputs=_frames(tagged=True, token=IMAGE, name="pixel_values", flat=True),
    ),
    "smolvlm": Case(
        inputs=_frames(tagged=True, token=IMAGE, name="pixel_values"),
        since="5.23",  # 5.18 merges by another operation than masked_scatter, and runs as it was
    ),
    "perception_lm": Case(
        vision={"model_type": "clip_vision_model", "model_args": {"embed_dim": 32}}, inputs=_frames(cells=16)
    ),
    "glm4v": Case(_GLM, inputs=_grid(tagged=True, token=IMAGE)),
    "glm4v_moe": Case(_HALF, inputs=_grid(tagged=True, token=IMAGE)),
    "glm46v": Case(_GLM, inputs=_grid(tagged=True, token=IMAGE)),
    "glmga": Case(_GLM, inputs=_grid(tagged=True, token=IMAGE)),
    "glm5_next": Case({"num_key_value_heads": 4, "qk_rope_head_dim": 0}, inputs=_grid(tagged=True, token=IMAGE)),
    "ernie4_5_vl_moe": Case(
        {"moe_intermediate_size": [32, 16], **_mrope([3, 3, 2])}, inputs=_grid(pooled=2, temporal=1)
    ),
    "gemma4": Case(
        _GEMMA,
        _GEMMA_VISION,
        parts={"audio_config": None},
        inputs=lambda f, s: patches_prompt(f, s, merged=False),
        since="5.23",  # 5.18 cannot split the angles of its vision encoder
    ),
    "gemma4_unified": Case(
        _GEMMA,
        {
            "model_type": "gemma4_unified_vision",
            "pooling_kernel_size": 2,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
        parts={"audio_config": None},
        inputs=lambda f, s: patches_prompt(f, s, merged=True),
    ),
    # The vision layer behind which patches are merged has to be there.
    "minicpmv4_6": Case(
        {"model_type": "qwen3_5_text", "head_dim": 32}, top={"insert_layer_id": 0}, inputs=packed_prompt
    ),
    "minicpmv4_7": Case(
        {"model_type": "qwen3_5_text", "head_dim": 32}, top={"insert_layer_id": 0}, inputs=packed_prompt
    ),
    "molmo2": Case(
        vision={"image_size": [16, 16], "num_position_embeddings": 16},
        top={"image_patch_id": IMAGE},
        parts={"adapter_config": {"vision_feature_layer": [-1], "text_hidden_size": 64}},
        inputs=pooled_prompt,
    ),
    "hyperclovax_vision_v2": Case(vision={"fullatt_block_indexes": [0]}),
    "exaone4_5": Case(vision={"fullatt_block_indexes": [0]}),
    "cohere_compass": Case(
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
            },
            "layer_types": ["sliding_attention", "full_attention"],
        },
        _DEEP,
        inputs=_grid(tagged=True),
        since="5.23",  # 5.18 hands its forward the pixels beside what was encoded
    ),
    "cosmos3_edge": Case(_mrope([2, 3, 3]), top={"projector_hidden_size": 64}, inputs=_grid(tagged=True, temporal=1)),
    "cosmos3_omni": Case(_QWEN3, _DEEP, inputs=_grid(tagged=True)),
    "muse_glimmer": Case(top={"out_hidden_size": 128, "projector_hidden_size": 64}),
    "muse_spark": Case(
        top={"out_hidden_size": 128, "projector_hidden_size": 64},
        parts={"audio_config": {"out_hidden_size": 64, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}},
    ),
    "lfm3_vl": Case(),
    "dots3_note": Case(
        {"num_key_value_heads": 4, "index_topk": 24, **_DOTS},  # more keys than are kept of the short prompt
        {"mlp_layer_types": ["dense"], "per_layer_config": {}, "adapter_in_dim": 32, "adapter_out_dim": 64},
        parts={
            "audio_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "intermediate_size": 32,
                "downsample_hidden_size": 8,
                "conv_output_size": 128,
                "adapter_input_size": 32,
                "adapter_out_dim": 64,
            }
        },
        inputs=_grid(temporal=1),
    ),
    "kimi_k25": Case(
        {"num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1},
        top={"projection_hidden_size": 32},
        inputs=lambda frames, seed: {
            **grid_prompt(frames, seed, planes=True),
            "video_grid_thw": torch.tensor([[1, SIDE, SIDE]] * frames),
        },
    ),
    "nemotron_h_omni": Case(
        _MAMBA,
        {"video_temporal_patch_size": 2},
        {"vision_hidden_size": 32, "projector_hidden_size": 64},
        inputs=_frames(flat=True, tagged=True, token=IMAGE, pooled=2),
        mend=_split_features,
    ),
    "minimax_m3_vl": Case(
        {"layer_types": ["full_attention", "minimax_m3_sparse"], "index_block_size": 5, "index_topk_blocks": 3}
    ),
}


# Models


def _kinds(config: PretrainedConfig) -> dict[str, Any]:
    """One layer of each kind, for the fields that list a kind for each layer."""
    listed = {name: list(dict.fromkeys(getattr(config, name))) for name in _KINDS if getattr(config, name, None)}
    if not listed:
        return {"num_hidden_layers": 2} if hasattr(config, "num_hidden_layers") else {}
    count = max(2, *(len(kinds) for kinds in listed.values()))
    fields: dict[str, Any] = {name: [kinds[i % len(kinds)] for i in range(count)] for name, kinds in listed.items()}
    return {**fields, "num_hidden_layers": count}


def _part(name: str, default: PretrainedConfig, case: Case) -> dict[str, Any]:
    text = name == "text_config"
    own = case.text if text else case.vision if name == "vision_config" else case.parts.get(name) or {}
    if "model_type" in own:
        default = CONFIG_MAPPING[own["model_type"]]()
    small = _TEXT if text else {} if name == "audio_config" else _VISION
    sizes = {key: value for key, value in small.items() if vars(default).get(key) is not None or value is None}
    kinds = _kinds(default) if text else {}
    return copy.deepcopy(
        {"model_type": default.model_type, **sizes, **kinds, **own}
    )  # a config changes what it is given


def expect_family(model_type: str) -> str:
    """The name of the config that understands video; the test skips where transformers has no such family yet."""
    case = FAMILIES[model_type]
    name = case.inner[0] if case.inner else model_type
    if name not in CONFIG_MAPPING or Version(transformers.__version__) < Version(case.since):
        pytest.skip(f"transformers {transformers.__version__} has no {name}, or one that takes no video")
    return name


def tiny_config(model_type: str, case: Case) -> PretrainedConfig:
    """The family's config with every size small."""
    name = expect_family(model_type)
    kind = CONFIG_MAPPING[name]
    default = kind()
    fields: dict[str, Any] = {key: value for key, value in _TOKENS.items() if hasattr(default, key)}
    parts = {name: value for name, value in vars(default).items() if isinstance(value, PretrainedConfig)}
    if "model_type" in case.vision:
        parts["vision_config"] = CONFIG_MAPPING[case.vision["model_type"]]()
    for name, value in parts.items():
        fields[name] = None if name in case.parts and case.parts[name] is None else _part(name, value, case)
    return kind(**{**fields, **case.top})


def model_class(model_type: str) -> Any:
    case = FAMILIES[model_type]
    inner = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    return getattr(transformers, case.inner[1] if case.inner else inner)


def _deeper(config: PretrainedConfig, rounds: int) -> None:
    """Repeats the decoder's layers, so that a layer of each kind stands behind one of every other kind."""
    text = config.get_text_config()
    for name in _KINDS:
        if getattr(text, name, None):
            setattr(text, name, list(getattr(text, name)) * rounds)
    text.num_hidden_layers = text.num_hidden_layers * rounds


# Some families are not yet in older releases as they are in those that SegMo was written with.
OLD = Version(transformers.__version__) < Version("5.23")


def instantiate(model_type: str, config: PretrainedConfig) -> Any:
    """A model of random weights; the test skips where its transformers wants a package that is not there."""
    try:
        return model_class(model_type)(config)
    except ImportError as error:  # an older transformers wants timm for one family
        pytest.skip(str(error).strip().splitlines()[0])


def build(model_type: str, dtype: torch.dtype = torch.float32, rounds: int = 1, **text: Any) -> Any:
    """A tiny model with the same random weights on every call, in eval mode on the CPU.

    ``text``: fields of its text config in the place of those in ``FAMILIES``.
    """
    case = FAMILIES[model_type]
    config = tiny_config(model_type, replace(case, text={**case.text, **text}))
    if rounds > 1:
        _deeper(config, rounds)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = instantiate(model_type, config)
    # Larger weights than at initialisation, so that what a token sees makes a difference in the logits.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    if case.mend:
        case.mend(model)
    return model.to(dtype).eval()


def prompt(model_type: str, frames: int = 6, seed: int = 0) -> Prompt:
    """Inputs of ``generate``: some text, a video of so many frames, a question."""
    taken = inspect.signature(model_class(model_type).forward).parameters
    inputs = FAMILIES[model_type].inputs(frames, seed)
    newer = {"mm_token_type_ids", "num_frames_per_video"}  # which some releases do without
    return {name: value for name, value in inputs.items() if name not in newer or name in taken}
