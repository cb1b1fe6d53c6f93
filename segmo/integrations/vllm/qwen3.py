"""Qwen3-VL and Qwen3.5: every frame has its time in front of it.

The features of Qwen3-VL come in again in deeper layers. The layers of Qwen3.5 that keep a state instead of keys (linear
attention) see the kept tokens alone, in their order.

In the prompt that vLLM schedules, all placeholders of a video stand in its first frame, because nobody knows yet how
many each frame keeps. The rows that the model computes have them where they belong, with the text between embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.model_executor.models import qwen3_5, qwen3_vl, qwen3_vl_moe
from vllm.multimodal import MULTIMODAL_REGISTRY

from segmo.integrations.vllm.model import KeepsTokens
from segmo.integrations.vllm.processor import CutsVideos, SeparateMedia


def _replacement(config: Any, tokenizer: Any, item: dict[str, Any], counts: Sequence[int]) -> Any:
    times = item["timestamps"]
    return qwen3_vl.Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=list(counts),
        timestamps=times.tolist() if isinstance(times, Tensor) else times,
        tokenizer=tokenizer,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        video_token_id=config.video_token_id,
    )


class CutsFrames(CutsVideos):
    """Placeholders of a cut video among the times of its frames."""

    def _placeholders(self, data: Any, kept: int) -> Any:
        item = {name: element.data for name, element in data.items()}
        counts = [kept, *[0] * (int(item["video_grid_thw"][0]) - 1)]
        return _replacement(self.info.get_hf_config(), self.info.get_tokenizer(), item, counts)


class KeepsFrames(KeepsTokens):
    """Kept tokens of each frame behind its time."""

    _tokenizer: Any
    visual_dim: int

    def _range_ids(self, item: dict[str, Any], counts: Sequence[int]) -> list[int]:
        return list(_replacement(self.config, self._tokenizer, item, counts).full)

    def _held_rows(self, kept: Tensor, ids_L: Tensor) -> Tensor:
        text_LH: Tensor = self.language_model.embed_input_ids(ids_L.to(kept.device))
        rows_LH = text_LH.new_zeros(len(ids_L), kept.shape[1])  # text has nothing to add in deeper layers
        rows_LH[:, : text_LH.shape[1]] = text_LH
        rows_LH[(ids_L == self.config.video_token_id).to(kept.device)] = kept.to(rows_LH)
        return rows_LH


class FramesProcessor(CutsFrames, qwen3_vl.Qwen3VLMultiModalProcessor):  # type: ignore[misc]  # no types here
    """Processor of all these families, for cut videos."""


class FramesDummies(SeparateMedia, qwen3_vl.Qwen3VLDummyInputsBuilder):  # type: ignore[misc]
    """Inputs for warming up."""


def _register(info: Any) -> Any:
    return MULTIMODAL_REGISTRY.register_processor(FramesProcessor, info=info, dummy_inputs=FramesDummies)


@_register(qwen3_vl.Qwen3VLProcessingInfo)
class Qwen3VL(KeepsFrames, qwen3_vl.Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen3-VL with SegMo's selection."""


@_register(qwen3_vl_moe.Qwen3VLMoeProcessingInfo)
class Qwen3VLMoe(KeepsFrames, qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):  # type: ignore[misc]
    """Qwen3-VL of experts with SegMo's selection."""


@_register(qwen3_5.Qwen3_5ProcessingInfo)
class Qwen35(KeepsFrames, qwen3_5.Qwen3_5ForConditionalGeneration):  # type: ignore[misc]
    """Qwen3.5 with SegMo's selection."""


@_register(qwen3_5.Qwen3_5MoeProcessingInfo)
class Qwen35Moe(KeepsFrames, qwen3_5.Qwen3_5MoeForConditionalGeneration):  # type: ignore[misc]
    """Qwen3.5 of experts with SegMo's selection."""
