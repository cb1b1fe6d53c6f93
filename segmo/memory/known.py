"""Which models can be watched with."""

from __future__ import annotations

from typing import Any

import torch

from segmo.errors import OptionError
from segmo.families import Family, family_of

# Families whose prompts, positions and features are known to go through here as the model itself has them.
KNOWN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
TEXT_INSIDE = ("qwen3_vl",)  # text stands between the frames, which a further part cannot bring along


def known_family(model: Any) -> Family:
    """The family of a model that can be watched with.

    Raises:
        OptionError: it is another one, or ranks share the work.
    """
    found = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = family_of(model)
    if family is None or found not in KNOWN:
        raise OptionError(f"a memory does not know the model family {found!r}; known: {', '.join(KNOWN)}")
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise OptionError(
            "a memory is not spread over ranks yet: watch and ask in one process, or on one rank before the process "
            "group is made"
        )
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise OptionError(f"a memory needs full attention in every layer; this model has {', '.join(sorted(kinds))}")
    return family
