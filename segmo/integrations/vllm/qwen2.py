"""Qwen2-VL and Qwen2.5-VL: a video is one run of placeholders.

What stands behind a video begins one behind its largest position of time, height and width: so it does for the
published checkpoints, in transformers up to 5.2, and in vLLM. In transformers 5.3 to 5.23 it begins at the
video's start plus its height or width, whichever is larger. A model that was trained there says so in its config:
``"segmo_text_positions": "grid"``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from segmo.errors import OptionError
from segmo.integrations.vllm.model import KeepsTokens
from segmo.integrations.vllm.processor import CutsVideos, SeparateMedia

TEXT_POSITIONS = ("largest", "grid")


class KeepsRuns(KeepsTokens):
    """Positions as the model was trained with them."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        rule = getattr(self.config, "segmo_text_positions", TEXT_POSITIONS[0])
        if rule not in TEXT_POSITIONS:
            raise OptionError(
                f"segmo_text_positions is {rule!r} in the model's config; it must be one of {TEXT_POSITIONS}"
            )
        self._grid = rule == "grid"
        if self._grid and vllm_config.use_v2_model_runner:
            raise OptionError(
                'segmo_text_positions="grid" does not go with vLLM\'s V2 runner; set VLLM_USE_V2_MODEL_RUNNER=0'
            )

    def _whole_positions(self, ids: list[int], features: list[Any]) -> Tensor:
        positions = super()._whole_positions(ids, features)
        if self._grid:
            for feature in features:
                place = feature.mm_position
                inside = positions[:, place.offset : place.offset + place.length]
                start, behind = inside[:, 0].min(), place.offset + place.length
                if behind < len(ids):
                    step = positions[0, behind] - start - (inside[1:].max() + 1 - start)
                    positions[:, behind:] -= step
        return positions


class Qwen2VLProcessor(CutsVideos, qwen2_vl.Qwen2VLMultiModalProcessor):  # type: ignore[misc]  # vLLM has no types here
    """Qwen2-VL's processor, for cut videos."""


class Qwen2VLDummies(SeparateMedia, qwen2_vl.Qwen2VLDummyInputsBuilder):  # type: ignore[misc]
    """Inputs for warming up."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLProcessor, info=qwen2_vl.Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummies
)
class Qwen2VL(KeepsRuns, qwen2_vl.Qwen2VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2-VL with SegMo's selection."""

    supported_video_pruning_methods = ("evs",)


class Qwen25VLProcessor(CutsVideos, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):  # type: ignore[misc]
    """Qwen2.5-VL's processor, for cut videos."""


class Qwen25VLDummies(SeparateMedia, qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder):  # type: ignore[misc]
    """Inputs for warming up."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=qwen2_5_vl.Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen25VLDummies
)
class Qwen25VL(KeepsRuns, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2.5-VL with SegMo's selection."""
