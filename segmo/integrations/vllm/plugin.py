"""What vLLM calls when it starts: the entry point ``segmo`` of the group ``vllm.general_plugins``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from segmo.integrations.vllm.seams import check_seams

# Names that checkpoints have in their config, and who serves them instead of the built-in model.
MODELS = {
    "Qwen2VLForConditionalGeneration": "segmo.integrations.vllm.qwen2:Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "segmo.integrations.vllm.qwen2:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "segmo.integrations.vllm.qwen3:Qwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "segmo.integrations.vllm.qwen3:Qwen3VLMoe",
    "Qwen3_5ForConditionalGeneration": "segmo.integrations.vllm.qwen3:Qwen35",
    "Qwen3_5MoeForConditionalGeneration": "segmo.integrations.vllm.qwen3:Qwen35Moe",
}


def register() -> None:
    """Puts SegMo's models in front of vLLM's own. vLLM calls this in each of its processes, and may do so twice.

    Raises:
        VersionError: this vLLM is not one that the plugin was made for; nothing of it is changed then.
    """
    check_seams()
    from vllm import ModelRegistry

    import_module("segmo.integrations.vllm.frames")  # registers its video loader
    for name, home in MODELS.items():
        ModelRegistry.register_model(name, home)
    mend_cpu_runner()


def mend_cpu_runner() -> None:
    """vLLM's runner for CPUs never looks whether a model prunes, as the one for GPUs does when it has loaded it.

    An entry point of its own, ``segmo_cpu``: vLLM's own pruning needs it on the CPU too (``VLLM_PLUGINS=segmo_cpu``).
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load: Any = CPUModelRunner.load_model
    if getattr(load, "segmo", False):
        return

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        config = self.model_config.multimodal_config
        prunes = config is not None and config.is_multimodal_pruning_enabled()
        self.is_multimodal_pruning_enabled = prunes and getattr(self.model, "supports_multimodal_pruning", False)

    load_model.segmo = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
