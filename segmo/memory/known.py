"""Which models can be watched with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from segmo.errors import OptionError
from segmo.families import Family, family_for


@dataclass(frozen=True)
class Watchable:
    """What a memory must know of a family beyond its entry in :mod:`segmo.families`.

    Attributes:
        text_inside: text stands between the frames, which a processor's outputs for a further part cannot bring along.
        token: field of the config with the id that a video's features take the place of.
    """

    text_inside: bool = False
    token: str = "video_token_id"


_TAGGED = Watchable(text_inside=True)
# Families whose prompts, positions and features are known to go through here as the model itself has them.
KNOWN: dict[str, Watchable] = {
    "qwen2_vl": Watchable(),
    "qwen2_5_vl": Watchable(),
    "qwen3_vl": _TAGGED,
    "llava_onevision": Watchable(),
}


def known_family(model: Any) -> Family:
    """The family of a model that can be watched with; whether it has M-RoPE is said.

    Raises:
        OptionError: it is another one, or not every layer has full attention.
    """
    config = getattr(model, "config", None)
    found = getattr(config, "model_type", type(model).__name__)
    if found not in KNOWN:
        raise OptionError(f"a memory does not know the model family {found!r}; known: {', '.join(KNOWN)}")
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
