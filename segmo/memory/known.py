"""Which models can be watched with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from segmo.calls.inner import inner_models
from segmo.compat.dynamo import OptimizedModule
from segmo.errors import OptionError
from segmo.families import Family, family_for


@dataclass(frozen=True)
class Watchable:
    """What a memory must know of a family beyond its entry in :mod:`segmo.families`.

    Attributes:
        text_inside: text stands between the frames, which a processor's outputs for a further part cannot bring along.
        token: field of the config with the id that a video's features take the place of.
        words: frames and questions in words are known to go through its processor as one prompt does; otherwise a
            memory takes a processor's outputs and ids.
    """

    text_inside: bool = False
    token: str = "video_token_id"
    words: bool = True


_TAGGED = Watchable(text_inside=True)
_OUTPUTS = Watchable(words=False)
_TAGGED_OUTPUTS = Watchable(text_inside=True, words=False)
_GLM = Watchable(text_inside=True, token="image_token_id", words=False)
# Families whose prompts, positions and features are known to go through here as the model itself has them.
KNOWN: dict[str, Watchable] = {
    "qwen2_vl": Watchable(),
    "qwen2_5_vl": Watchable(),
    "qwen3_vl": _TAGGED,
    "llava_onevision": Watchable(),
    "qwen3_vl_moe": _TAGGED,
    "cosmos3_edge": _TAGGED_OUTPUTS,
    "cosmos3_omni": _TAGGED_OUTPUTS,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm46v": _GLM,
    "glmga": _GLM,
    "hyperclovax_vision_v2": _OUTPUTS,
    "llava_next_video": Watchable(),
    "perception_lm": _OUTPUTS,
    "video_llama_3": _TAGGED_OUTPUTS,
    "video_llava": _OUTPUTS,
}


def watching_model(given: Any) -> Any:
    """The model inside what a user hands over, such as PEFT's; compiled or not, a model itself stays as it is."""
    models = [] if isinstance(given, (PreTrainedModel, OptimizedModule)) else inner_models(given)
    return models[0] if len(models) == 1 else given


def known_family(model: Any, processor: Any = None) -> Family:
    """The family of a model that can be watched with; whether it has M-RoPE is said.

    Raises:
        OptionError: it is another one, not every layer has full attention, or its processor is not known here.
    """
    config = getattr(model, "config", None)
    found = getattr(config, "model_type", type(model).__name__)
    if found not in KNOWN:
        raise OptionError(f"a memory does not know the model family {found!r}; known: {', '.join(KNOWN)}")
    if not hasattr(model, "generate"):
        raise OptionError(
            f"a {type(model).__name__} cannot answer; hand in the model with its head, which has generate"
        )
    if processor is not None and not KNOWN[found].words:
        raise OptionError(
            f"of {found}, a memory takes no frames and no questions in words: watch(model, None, outputs) with its "
            "processor's outputs for a prompt with the video, and ask with the ids behind it"
        )
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise OptionError(f"a memory needs full attention in every layer; this model has {', '.join(sorted(kinds))}")
    family = family_for(config)
    return family if family.mrope is not None else replace(family, mrope=hasattr(model.base_model, "get_rope_index"))


def video_token(model: Any) -> int:
    """Id that a known model's video features take the place of."""
    token: int = getattr(model.config, KNOWN[model.config.model_type].token)
    return token


def text_inside(family: Family) -> bool:
    """Whether text stands between a family's frames."""
    return KNOWN[family.model_type].text_inside
