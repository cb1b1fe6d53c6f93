"""What lmms-eval finds through the entry point group ``lmms_eval.models``."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The manifest of the chat model ``segmo``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="segmo", chat_class_path="segmo.integrations.lmms.model.SegmoChat")
