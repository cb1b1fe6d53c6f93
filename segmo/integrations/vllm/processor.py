"""The processor's side of the plugin: the question, how many placeholders stand for a video, and what media are called.

It runs in the process of the API server, in front of vLLM's caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement
from vllm.multimodal.processing.context import InputProcessingContext

from segmo.compiler.chat import chat_of_tokenizer
from segmo.errors import PromptError
from segmo.integrations.vllm import metrics, plan
from segmo.integrations.vllm.options import ServeOptions, parse
from segmo.integrations.vllm.select import kept_tokens
from segmo.runtime.question import ChatTokens, find_question


def selects(mm_config: Any) -> bool:
    """Whether a server was started with pruning, and with no other method than the default."""
    spec = mm_config.get_video_pruning_spec()
    return spec is not None and spec[0] == "evs"


class Context(InputProcessingContext):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's context, which keeps SegMo's own options from transformers' processors."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **more: Any) -> dict[str, Any]:
        return plan.without(super().get_merged_mm_kwargs(kwargs, **more))


class SeparateMedia:
    """Stands in front of a built-in maker of inputs for warming up: its media stand apart, as those of a chat do."""

    info: Any

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        processor, config = self.info.get_hf_processor(), self.info.get_hf_config()
        tokenizer = self.info.get_tokenizer()
        start, end = tokenizer.convert_ids_to_tokens([config.vision_start_token_id, config.vision_end_token_id])
        tokens = (processor.image_token, mm_counts.get("image", 0)), (processor.video_token, mm_counts.get("video", 0))
        return "".join(f"{start}{token}{end}" * count for token, count in tokens)


class CutsVideos:
    """Stands in front of a built-in processor."""

    info: Any

    def __init__(self, info: Any, *args: Any, **kwargs: Any) -> None:
        info.ctx = Context(info.ctx.model_config, info.ctx.tokenizer)
        super().__init__(info, *args, **kwargs)  # type: ignore[call-arg]  # the built-in processor stands behind

    @cached_property
    def _chat(self) -> ChatTokens:
        tokenizer, processor = self.info.get_tokenizer(), self.info.get_hf_processor()
        return chat_of_tokenizer(tokenizer, getattr(processor, "chat_template", None)).tokens

    def _options(self, kwargs: plan.Kwargs) -> ServeOptions | None:
        mm_config = self.info.ctx.get_mm_config()
        given = {**(mm_config.mm_processor_kwargs or {}), **kwargs}
        return parse(given, mm_config.video_pruning_rate if selects(mm_config) else None)

    def _question(self, ids: Sequence[int], options: ServeOptions) -> tuple[int, ...]:
        if options.question_blind:
            return ()
        config = self.info.get_hf_config()
        media = {config.video_token_id, config.image_token_id, config.vision_start_token_id, config.vision_end_token_id}
        text = [id_ not in media for id_ in ids]
        return tuple(ids[at] for at in find_question(ids, text, self._chat))

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Makes the plan of a prompt's videos, which goes along in its processor options."""
        options = self._options(inputs.hf_processor_mm_kwargs)
        if options is None or not inputs.mm_data_items.get_all_counts().get("video"):
            return super().apply(inputs, timing_ctx)  # type: ignore[misc]
        config = self.info.get_hf_config()
        self._check_apart(inputs.prompt)
        plain = replace(inputs, hf_processor_mm_kwargs=plan.without(inputs.hf_processor_mm_kwargs))
        hashes = super()._get_mm_hashes(plain)  # type: ignore[misc]
        ends = bool(inputs.prompt) and inputs.prompt[-1] == config.video_token_id
        asked = self._question(inputs.prompt, options)
        wish = plan.Plan(options, asked, hashes, tuple(hashes["video"]), ends)
        kwargs = plan.put(inputs.hf_processor_mm_kwargs, wish)
        return super().apply(replace(inputs, hf_processor_mm_kwargs=kwargs), timing_ctx)  # type: ignore[misc]

    def _check_apart(self, ids: Sequence[int]) -> None:
        config = self.info.get_hf_config()
        media = {config.video_token_id, config.image_token_id}
        for before, after in pairwise(ids):
            if before in media and after == config.video_token_id:
                raise PromptError(
                    "a video stands right behind another video or image; put text or the model's own marks of a "
                    "vision turn between them, as its chat template does"
                )

    def _get_mm_hashes(self, inputs: Any) -> Any:
        wish = plan.plan_in(inputs.hf_processor_mm_kwargs)
        return super()._get_mm_hashes(inputs) if wish is None else wish.identities()  # type: ignore[misc]

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Mapping[str, list[bool]]) -> Any:
        kwargs = super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)  # type: ignore[misc]
        wish = plan.plan_in(inputs.hf_processor_mm_kwargs)
        return kwargs if wish is None else plan.put(kwargs, wish.only([not hit for hit in mm_is_cached["video"]]))

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: plan.Kwargs, processed_data: Any) -> Any:
        processed = super()._postprocess_hf_mm_data(  # type: ignore[misc]
            mm_inputs, hf_processor_mm_kwargs, processed_data
        )
        wish = plan.plan_in(hf_processor_mm_kwargs)
        if wish is not None and wish.videos:
            processed.update(wish.fields())
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: plan.Kwargs) -> Any:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        for name in plan.FIELDS:
            fields[name] = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
        return fields

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: plan.Kwargs, out_mm_kwargs: Any) -> Any:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        wish = plan.plan_in(hf_processor_mm_kwargs)
        if wish is None:
            return updates
        merge = self.info.get_hf_config().vision_config.spatial_merge_size ** 2

        def held(item: int) -> Any:
            data = out_mm_kwargs["video"][item]
            video = int(data["video_grid_thw"].data.prod()) // merge
            kept = kept_tokens(video, wish.options.keep)
            metrics.count(video, kept)
            return self._placeholders(data, kept)

        return [
            PromptReplacement(modality="video", target=update.target, replacement=held)
            if update.modality == "video"
            else update
            for update in updates
        ]

    def _placeholders(self, data: Any, kept: int) -> Any:
        """What stands for a cut video in the prompt."""
        return [self.info.get_hf_config().video_token_id] * kept
