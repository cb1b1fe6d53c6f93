"""Wrapped and otherwise dressed-up models: the one that is really called is compiled, or it is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ask_models import write_model
from models import FAMILIES, LAYERS, build, prompt
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, pipeline

import segmo
from segmo.errors import CacheError, CompileError, OptionError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

FAMILY = "qwen2_5_vl"


def generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int = 2) -> Any:
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True)


def held(out: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in out.past_key_values.layers]


def kinds() -> list[str]:
    return [graph.kind for graph in segmo.last_report().graphs]


def equal_and_cut(model: Any, family: str = FAMILY) -> None:
    """Equal to the model as it is where nothing is dropped, and K tokens held below."""
    inputs = prompt(family)
    expected = generate(model, inputs).sequences
    segmo.compile(model, keep=1.0, segments=1, strict=True)
    assert torch.equal(generate(model, inputs).sequences, expected)
    assert kinds() == ["prefill", "decode"]
    segmo.compile(model, keep=0.5, strict=True)
    assert held(generate(model, inputs, 1)) == [inputs["input_ids"].shape[1] - 12] * LAYERS
    segmo.uncompile(model)
    assert torch.equal(generate(model, inputs).sequences, expected)


def lora(family: str = FAMILY) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(build(family), config).eval()


def test_lora_applied_disabled_and_merged() -> None:
    model = lora()
    equal_and_cut(model)
    with model.disable_adapter():
        equal_and_cut(model)
    inputs = prompt(FAMILY)
    segmo.compile(model, keep=0.5)
    expected = generate(model, inputs).sequences
    with model.disable_adapter():
        as_loaded = generate(segmo.compile(build(FAMILY), keep=0.5), inputs).sequences
        assert torch.equal(generate(model, inputs).sequences, as_loaded)
    merged = model.merge_and_unload()
    assert torch.equal(generate(merged, inputs).sequences, expected)
    assert held(generate(merged, inputs)) == [inputs["input_ids"].shape[1] - 12 + 1] * LAYERS


def test_lora_by_torch_compile_and_in_place() -> None:
    model, inputs = lora(), prompt(FAMILY)
    length = inputs["input_ids"].shape[1]
    opt = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.5, "strict": True})
    assert held(generate(opt, inputs)) == [length - 11] * LAYERS
    with torch.no_grad():
        assert opt(**inputs).past_key_values.layers[0].keys.shape[2] == length - 12
    assert held(generate(model, inputs)) == [length + 1] * LAYERS
    model.compile(backend="segmo", dynamic=True, options={"keep": 0.25, "strict": True})
    assert held(generate(model, inputs)) == [length - 17] * LAYERS


def test_accelerate_s_hooks_and_offloaded_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    equal_and_cut(accelerate.cpu_offload(build(FAMILY), execution_device=torch.device("cpu")))
    model = build(FAMILY)
    parts = {"model.visual": "cpu", "model.language_model": "cpu", "lm_head": "cpu"}
    equal_and_cut(accelerate.dispatch_model(model, parts, main_device="cpu", force_hooks=True))
    segmo.compile(model, keep=0.5)
    for module in model.model.language_model.layers[1].modules():
        if hasattr(module, "_hf_hook"):
            module._hf_hook.execution_device = torch.device("meta")
    with pytest.raises(CompileError, match=r"on 2 devices \(cpu, meta\)"):
        generate(model, prompt(FAMILY))


@pytest.mark.parametrize(
    "how", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Float8WeightOnlyConfig"]
)
def test_weights_that_torchao_quantised(how: str) -> None:
    """They are tensors of other classes, each of which takes some of PyTorch's calls only."""
    quantization = pytest.importorskip("torchao.quantization")
    model = build(FAMILY)
    quantization.quantize_(model.model.language_model, getattr(quantization, how)())
    equal_and_cut(model)


def test_weights_that_are_quantised_behind_a_compiled_call() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, inputs = segmo.compile(build(FAMILY), keep=1.0, segments=1, strict=True), prompt(FAMILY)
    generate(model, inputs)
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    found = generate(model, inputs).sequences
    assert torch.equal(found, generate(segmo.uncompile(model), inputs).sequences)


class Registered(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def generate(self, **inputs: Any) -> Any:
        return self.inner.generate(**inputs)


class Hidden(torch.nn.Module):
    """Keeps the model where torch does not look for modules."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.held = [model]

    def generate(self, **inputs: Any) -> Any:
        return self.held[0].generate(**inputs)


class Plain:
    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(self, **inputs: Any) -> Any:
        return self.model.generate(**inputs)


@pytest.mark.parametrize("wrap", [Registered, Hidden, Plain])
def test_wrappers_of_the_user_s(wrap: type[Any]) -> None:
    equal_and_cut(wrap(build(FAMILY)))


@pytest.mark.parametrize("before", [True, False], ids=["the model before", "the pipeline"])
def test_transformers_pipeline_with_a_video(before: bool, tmp_path: Path) -> None:
    """Compiled before it is handed in, or as a pipeline; the video is frames that were read already."""
    folder = write_model(FAMILY, tmp_path)
    model, processor = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    asker = pipeline("image-text-to-text", model=model, processor=processor)
    frames = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    chat = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "What is it?"}]}]
    more: dict[str, Any] = {"return_full_text": False, "generate_kwargs": {"do_sample": False, "max_new_tokens": 2}}
    more["processor_kwargs"] = {"do_sample_frames": False}
    expected = asker(text=chat, **more)
    assert segmo.compile(model if before else asker, keep=1.0, segments=1, strict=True) is (model if before else asker)
    assert asker(text=chat, **more)[0]["generated_text"] == expected[0]["generated_text"]
    segmo.compile(model, keep=0.5, strict=True)
    asker(text=chat, **more)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    tokens = prefill.tokens()
    assert 0 < tokens["kept"] == tokens["video"] // 2


def test_what_cannot_be_seen_through_is_refused_by_name() -> None:
    model = build(FAMILY)

    class Elsewhere:
        def generate(self, **inputs: Any) -> Any:
            return model.generate(**inputs)

    with pytest.raises(OptionError, match="no Video LLM in Elsewhere"):
        segmo.compile(Elsewhere())
    two = torch.nn.ModuleList([model, build("qwen2_vl")])
    for compile_ in (segmo.compile, lambda given: torch.compile(given, backend="segmo")):
        with pytest.raises(OptionError, match=r"ModuleList holds 2 Video LLMs \(Qwen2_5_VL.*Qwen2VL"):
            compile_(two)
        with pytest.raises(OptionError, match="DistributedDataParallel"):
            compile_(torch.nn.DataParallel(model))


@pytest.mark.parametrize(
    ("family", "loaded"),
    list(zip(FAMILIES, ("flash_attention_2", "eager", "flex_attention", "flash_attention_2"), strict=True)),
)
def test_whatever_attention_a_model_was_loaded_with(family: str, loaded: str) -> None:
    inputs = prompt(family)
    expected = generate(build(family), inputs).sequences
    model = build(family)
    model.config._attn_implementation = loaded
    segmo.compile(model, keep=1.0, segments=1, strict=True)
    assert torch.equal(generate(model, inputs).sequences, expected)
    assert kinds() == ["prefill", "decode"]
    assert f"attention was loaded as {loaded}" in str(segmo.last_report())
    segmo.uncompile(model)
    assert {model.config._attn_implementation, model.config.get_text_config()._attn_implementation} == {loaded}
    opt = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.5, "strict": True})
    assert held(generate(opt, inputs, 1))[0] < inputs["input_ids"].shape[1]
    assert model.config.get_text_config()._attn_implementation == loaded


def test_attention_weights_that_sdpa_does_not_give_are_refused() -> None:
    model, inputs = build(FAMILY), prompt(FAMILY)
    model.set_attn_implementation("eager")
    segmo.compile(model, keep=0.5)
    with torch.no_grad(), pytest.raises(CompileError, match=r"sdpa gives no attention weights.*uncompile"):
        model(**inputs, output_attentions=True)
    with torch.no_grad():
        assert segmo.uncompile(model)(**inputs, output_attentions=True).attentions[0] is not None


def test_adapters_that_are_switched_make_a_memory_stale(tmp_path: Path) -> None:
    model, inputs = lora(), prompt(FAMILY)
    question = torch.tensor([11, 12])
    wanted = segmo.watch(model.base_model.model, None, inputs).ask(question, max_new_tokens=2)
    memory = segmo.watch(model, None, inputs)
    assert torch.equal(memory.ask(question, max_new_tokens=2), wanted)
    memory.save(tmp_path)
    with model.disable_adapter():
        with pytest.raises(CacheError, match="have changed"):
            memory.ask(question)
        with pytest.raises(CacheError, match="other weights"):
            segmo.Memory.load(model, tmp_path)
    again = segmo.Memory.load(model, tmp_path).ask(question, max_new_tokens=2)
    assert torch.equal(again, wanted)
