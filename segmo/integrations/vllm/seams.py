"""What the plugin relies on in vLLM, looked up before anything is changed: a vLLM that lacks some of it is refused."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from segmo.errors import VersionError

OLDEST = "0.32"
READ = "0.33"  # up to here, what the plugin relies on was compared with what it was tested with
_MODELS = "vllm.model_executor.models"
_PROCESSOR = "vllm.multimodal.processing.processor"


@dataclass(frozen=True)
class Seam:
    """A name in vLLM, and parameters that it must take.

    Attributes:
        place: "module:Name.name".
        parameters: in any order.
    """

    place: str
    parameters: tuple[str, ...] = ()

    def fault(self) -> str | None:
        """What is wrong with it here, None if nothing is."""
        module, _, path = self.place.partition(":")
        try:
            found: Any = import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            return f"{self.place} is gone ({error})"
        if missing := [name for name in self.parameters if name not in _parameters(found)]:
            return f"{self.place} takes no {', '.join(missing)}"
        return None


@dataclass(frozen=True)
class Phrase:
    """Words that a module's source must hold: how vLLM calls what the plugin puts in the place of its own.

    Attributes:
        module: it is read, not imported.
        words: with any space between them.
    """

    module: str
    words: str

    def fault(self) -> str | None:
        """What is wrong with it here, None if nothing is."""
        package, *rest = self.module.split(".")
        file = Path(import_module(package).__path__[0], *rest).with_suffix(".py")
        if not file.exists():
            return f"{self.module} is gone"
        source = "".join(file.read_text(encoding="utf-8").split())
        return None if "".join(self.words.split()) in source else f"{self.module} no longer says {self.words!r}"


def _parameters(found: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(found).parameters)


def _of(holder: str, *methods: tuple[str, tuple[str, ...]]) -> tuple[Seam, ...]:
    return tuple(Seam(f"{holder}.{name}", parameters) for name, parameters in methods)


_MODEL = (
    ("embed_multimodal", ("kwargs",)),
    ("get_mrope_input_positions", ("input_tokens", "mm_features")),
    ("get_encoder_cudagraph_config", ()),
)
_RECOMPUTE = "recompute_mrope_positions(input_ids="
SEAMS: tuple[Seam | Phrase, ...] = (
    Phrase("vllm.v1.worker.gpu_model_runner", f"self.model.{_RECOMPUTE}"),
    Phrase("vllm.v1.worker.gpu_model_runner", "if self.is_multimodal_pruning_enabled and self.uses_mrope:"),
    Phrase("vllm.v1.worker.gpu_model_runner", "req_state.mrope_positions.copy_(new_mrope_positions)"),
    Phrase("vllm.v1.worker.gpu.model_states.mm_pruning", f"self.model.{_RECOMPUTE}"),
    Phrase(_PROCESSOR, "mm_hashes = self._get_mm_hashes(inputs)"),
    Phrase(_PROCESSOR, "self._get_cache_missing_processor_kwargs("),
    Seam("vllm:ModelRegistry.register_model", ("model_arch", "model_cls")),
    Seam("vllm.multimodal.video:VIDEO_LOADER_REGISTRY.register", ("name",)),
    Seam("vllm.multimodal.video:VideoLoader.load_bytes", ("data",)),
    Seam("vllm.envs:VLLM_MAX_IMAGE_PIXELS"),
    Seam("vllm.multimodal:MULTIMODAL_REGISTRY.register_processor", ("processor", "info", "dummy_inputs")),
    Seam("vllm.config.multimodal:MultiModalConfig.get_video_pruning_spec"),
    Seam("vllm.config.multimodal:MultiModalConfig.is_multimodal_pruning_enabled"),
    Seam("vllm.multimodal.processing:PromptReplacement", ("modality", "target", "replacement")),
    Seam("vllm.multimodal.processing.inputs:ProcessorInputs", ("prompt", "mm_data_items", "hf_processor_mm_kwargs")),
    Seam("vllm.multimodal.inputs:MultiModalFieldConfig.batched", ("modality", "keep_on_cpu")),
    Seam("vllm.multimodal.inputs:MultiModalFeatureSpec", ("data", "modality", "identifier", "mm_position")),
    Seam("vllm.multimodal.inputs:PlaceholderRange", ("offset", "length")),
    *_of(
        "vllm.multimodal.processing.context:InputProcessingContext",
        ("get_merged_mm_kwargs", ("kwargs",)),
        ("get_hf_processor", ()),
    ),
    *_of(
        f"{_PROCESSOR}:BaseMultiModalProcessor",
        ("apply", ("inputs", "timing_ctx")),
        ("_get_mm_hashes", ("inputs",)),
        ("_get_cache_missing_processor_kwargs", ("inputs", "mm_is_cached")),
        ("_postprocess_hf_mm_data", ("mm_inputs", "hf_processor_mm_kwargs", "processed_data")),
        ("_get_mm_fields_config", ("hf_inputs", "hf_processor_mm_kwargs")),
        ("_get_prompt_updates", ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs")),
    ),
    Seam(
        f"{_MODELS}.interfaces:SupportsMultiModalPruning.recompute_mrope_positions",
        ("input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens"),
    ),
    *_of(f"{_MODELS}.qwen2_vl:Qwen2VLForConditionalGeneration", *_MODEL),
    *_of(f"{_MODELS}.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration", *_MODEL),
    *_of(f"{_MODELS}.qwen3_vl:Qwen3VLForConditionalGeneration", *_MODEL),
    *_of(f"{_MODELS}.qwen3_vl_moe:Qwen3VLMoeForConditionalGeneration", *_MODEL),
    *_of(f"{_MODELS}.qwen3_5:Qwen3_5ForConditionalGeneration", *_MODEL),
    *_of(f"{_MODELS}.qwen3_5:Qwen3_5MoeForConditionalGeneration", *_MODEL),
    Seam(
        f"{_MODELS}.qwen3_vl:Qwen3VLMultiModalProcessor.get_video_repl",
        ("tokens_per_frame", "timestamps", "tokenizer", "video_token_id"),
    ),
)


def check_seams(seams: tuple[Seam | Phrase, ...] = SEAMS) -> None:
    """Refuses a vLLM that lacks something, and warns of one that is newer than what was looked at.

    Raises:
        VersionError: it names the version, and all that is missing.
    """
    import vllm
    from packaging.version import InvalidVersion, Version

    found = str(vllm.__version__)
    try:
        release = Version(found).release[:2]
    except InvalidVersion:  # built from source
        release = Version(READ).release
    old = release < Version(OLDEST).release
    faults = [fault for seam in seams if (fault := seam.fault())]
    if old or faults:
        what = "; ".join(faults) or "it is too old"
        raise VersionError(
            f"SegMo's plugin does not fit vLLM {found}: {what}. Install another vllm (it is tested with {OLDEST}), or "
            'start this one without the plugin: VLLM_PLUGINS=""'
        )
    if release > Version(READ).release:
        warnings.warn(
            f"vLLM {found} is newer than what SegMo's plugin was read against ({READ}) and tested with ({OLDEST}); all "
            "that it relies on is there",
            stacklevel=2,
        )
