"""Reads and builds Video LLMs in the class that their config names, whichever family it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_model(folder: str | Path, dtype: str = "auto", **more: Any) -> Any:
    """The model in a folder, in eval mode.

    Of an Omni model it is the part that understands and writes text; what speaks is not read.

    Args:
        folder: or a name, where a hub can be reached.
        dtype: "auto" for the dtype of the weights, or a name such as "bfloat16".
        **more: handed on to ``from_pretrained``.

    Raises:
        OSError, ValueError: transformers knows no such model there.
    """
    from transformers import AutoConfig

    config = understanding(AutoConfig.from_pretrained(folder, **more))
    return _auto().from_pretrained(folder, config=config, dtype=dtype, **more).eval()


def build_model(config: Any, dtype: Any) -> Any:
    """A model with random weights, in eval mode on the CPU."""
    return _auto().from_config(understanding(config), dtype=dtype).eval()


def understanding(config: Any) -> Any:
    """The part of a config that makes text from video: an Omni model's thinker, or else the whole."""
    return getattr(config, "thinker_config", None) or config


def _auto() -> Any:
    import transformers

    # The newer one knows Omni models too.
    return getattr(transformers, "AutoModelForMultimodalLM", None) or transformers.AutoModelForImageTextToText
