"""A model's graph without its weights: the real transformers class, narrow, with random weights.

What the passes decide on stays as in the config: the class, the number of decoder layers, the head size, how many query
heads share a key/value head, sliding windows, and what else shapes the code. What only makes it large (hidden sizes,
vocabulary, number of heads, depth of the vision tower, size of a frame) shrinks, so that 80 layers fit into memory.
That is for the families in ``NARROW``; of others counts alone are cut (:mod:`segmo.inspection.fewer`).
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from segmo.errors import OptionError, in_one_line
from segmo.families import FAMILIES, takes_video
from segmo.inspection.fewer import fewer, one_of_each, set_layers
from segmo.inspection.support import families
from segmo.pretrained import build_model, understanding

VIDEO, IMAGE, START, END = 5, 6, 7, 8
VOCABULARY = 128
SIDE = 8  # patches of a frame's side for Qwen; two by two are merged into a token
PIXELS = 4  # of a patch's side
# Families with rules for a narrow model and a prompt: those with rules of their own elsewhere too, and their relatives.
TAGGED = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "glm46v")  # a time before a frame
AS_IMAGES = ("glm4v", "glm4v_moe", "glm46v")  # a video's features take the place of the image token
NARROW = tuple(dict.fromkeys((*FAMILIES, *TAGGED, "qwen2_5_omni")))
KNOWN = tuple(dict.fromkeys((*NARROW, *(row.family for row in families()))))
DEFAULT_LAYERS = 4  # of a family that is given by name only; its default config may have 80


def load_config(source: str, layers: int | None = None) -> Any:
    """The transformers config of a model.

    Args:
        source: a folder with ``config.json`` (or the file), a ``model_type``, or the name of a config or model class.
        layers: decoder layers; None for as many as the config says, and for a name without a config for 4, or for as
            many as it takes to have one of each kind.

    Raises:
        OptionError: no such file or family.
    """
    path = Path(source)
    if path.exists():
        config = understanding(read_config(path))
    else:
        config = _from_name(source)
        layers = layers or max(DEFAULT_LAYERS, one_of_each(config.get_text_config()))
    if layers is not None:
        set_layers(config.get_text_config(), layers)
    return config


def read_config(path: Path) -> Any:
    """The config in a folder or a file.

    Raises:
        OptionError: there is none that transformers can read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{path} holds no config that transformers can read: {error}") from error


def _from_name(name: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for model_type in KNOWN:
        if model_type not in CONFIG_MAPPING:  # of a later transformers
            continue
        cls = CONFIG_MAPPING[model_type]
        stem = cls.__name__.removesuffix("Config")
        if name == model_type or (name.startswith(stem) and name.removeprefix(stem) in ("Config", _GENERATION)):
            return understanding(_with_vision(model_type))
    raise _unknown(name)


def _with_vision(model_type: str) -> Any:
    """A family's default config, which in some families has no vision encoder unless one is asked for."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    if getattr(config, "vision_config", ()) is None:
        return AutoConfig.for_model(model_type, vision_config={})
    return config


_GENERATION = "ForConditionalGeneration"


def _unknown(name: str) -> OptionError:
    return OptionError(
        f"{name!r} is no model family that SegMo knows, and no folder with a config.json; "
        f"known families: {', '.join(KNOWN)}; of any other, a folder with weights can be inspected (--weights --video)"
    )


def is_narrow(config: Any) -> bool:
    """Whether there are rules for a narrow model of a config's family."""
    return config.model_type.removesuffix("_thinker") in NARROW


def shrink(config: Any, layers: int | None = None) -> Any:
    """A narrow copy of a config; see the top of this file for what stays.

    Args:
        config: is left as it is.
        layers: of the decoder, where they were asked for: then there are so many, however deep that is.
    """
    if not is_narrow(config):
        return fewer(config, layers)
    small = copy.deepcopy(config)
    _shrink_text(small.get_text_config())
    _shrink_vision(small)
    for name in ("video_token_id", "video_token_index"):
        _set(small, name, VIDEO)
    for name in ("image_token_id", "image_token_index"):
        _set(small, name, IMAGE)
    small.vision_start_token_id, small.vision_end_token_id = START, END
    _set(small, "vision_feature_layer", -1)
    return small


def _set(config: Any, name: str, value: Any) -> None:
    if getattr(config, name, None) is not None:
        setattr(config, name, value)


# Sizes of experts and of linear attention, by the names that families share.
_SIZES = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_experts_per_tok", "linear_num_key_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("first_k_dense_replace", "n_group", "topk_group"), 1),
}


def _shrink_text(text: Any) -> None:
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    repeats = heads // groups
    text.num_key_value_heads = 1 if repeats > 1 else 2
    text.num_attention_heads = text.num_key_value_heads * repeats
    text.hidden_size = text.num_attention_heads * size
    text.intermediate_size = 96
    for name, value in _SIZES.items():
        _set(text, name, value)
    text.vocab_size = VOCABULARY
    text.bos_token_id = text.eos_token_id = None
    text.pad_token_id = 0
    if text.model_type.endswith("_text"):  # M-RoPE; a config made by name only says nothing of its sections
        rope = dict(text.rope_parameters)
        half = math.ceil(int(size * rope.get("partial_rotary_factor", 1)) / 2)
        side = (half - half // 4) // 2
        rope.setdefault("mrope_section", [half - 2 * side, side, side])
        text.rope_parameters = rope


def _shrink_vision(config: Any) -> None:
    vision, width = config.vision_config, config.get_text_config().hidden_size
    if config.model_type == "llava_onevision":
        vision.hidden_size, vision.intermediate_size, vision.num_attention_heads = 32, 48, 2
        vision.num_hidden_layers, vision.patch_size, vision.image_size = 2, PIXELS, SIDE * PIXELS
        return
    levels = len(getattr(vision, "deepstack_visual_indexes", None) or ()) or 1
    vision.depth, vision.num_heads, vision.patch_size = levels, 2, PIXELS
    _set(vision, "deepstack_visual_indexes", list(range(levels)))
    _set(vision, "fullatt_block_indexes", [0])
    _set(vision, "window_size", SIDE * PIXELS)
    _set(vision, "intermediate_size", 48)
    if hasattr(vision, "embed_dim"):  # Qwen2-VL: hidden_size is the width that comes out
        vision.embed_dim, vision.hidden_size = 32, width
    else:
        vision.hidden_size, vision.out_hidden_size = 32, width


def build(config: Any) -> Any:
    """The conditional-generation model of a narrow config: random weights, eval mode, on the CPU in float32.

    Raises:
        OptionError: transformers makes no such model, or it takes no video.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = build_model(config, torch.float32)
        except Exception as error:  # classes refuse a config in many ways
            raise OptionError(
                "transformers cannot build a model that takes video from a config of "
                f"{config.model_type} ({in_one_line(error)})"
            ) from error
    if not takes_video(model):
        raise OptionError(f"{type(model).__name__} is no Video LLM: none of its inputs is a video")
    return model
