"""Whole prefills of a Video LLM's decoder on the device: as it is, compiled by inductor, and with SegMo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gpu_place import Place, relative_error
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

import segmo

VIDEO, START, END, VOCABULARY, SEGMENTS = 5, 7, 8, 1024, 8
WAYS: dict[str, Mapping[str, Any]] = {
    "CAS+LSP 0.25": {"keep": 0.25, "segments": SEGMENTS},
    "LSP+GCI": {"keep": 1.0, "segments": SEGMENTS},
    "CAS 0.25": {"keep": 0.25, "disable": ["segment-attention", "inject-context"]},
}


@dataclass(frozen=True)
class Shape:
    """A decoder's shape.

    Attributes:
        hidden, inner, heads, groups, layers: as in a transformers config.
        side: cells of a frame's side; a frame has ``side ** 2`` tokens.
    """

    hidden: int
    inner: int
    heads: int
    groups: int
    layers: int
    side: int = 16

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def layers_that_fit(self, free_bytes: int, element: int) -> int:
        """Layers whose weights take at most half of the memory."""
        kv = self.groups * self.head_size
        layer = element * (2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.inner)
        return max(1, min(self.layers, free_bytes // (2 * layer)))


QWEN_7B = Shape(3584, 18944, 28, 4, 28)  # Qwen2.5-VL-7B's decoder


def build_model(place: Place, shape: Shape, layers: int, dtype: torch.dtype) -> Any:
    """A Qwen2-VL of this shape with random weights, made on the device."""
    eighth = shape.head_size // 8
    rest = (shape.head_size // 2 - eighth) // 2
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "max_position_embeddings": 1 << 17,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [eighth, rest, rest]},
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": shape.hidden, "num_heads": 2, "mlp_ratio": 2}
    tokens = {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(place.device):
            model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **tokens))
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def build_prompt(place: Place, model: Any, shape: Shape, frames: int, dtype: torch.dtype) -> dict[str, Any]:
    """A prompt with ``frames`` frames in scenes of unequal length that hold still but for noise."""
    bounds = torch.linspace(0, 1, SEGMENTS + 1) ** 1.3
    scene = torch.bucketize((torch.arange(frames) + 0.5) / frames, bounds[1:-1]).to(place.device)
    cells = shape.side**2
    still, noise = place.randn(0, SEGMENTS, cells, shape.hidden), place.randn(1, frames, cells, shape.hidden)
    features = (still[scene] + 0.1 * noise).flatten(0, 1).to(dtype)
    ids = torch.tensor([[20, 21, 22, START, *[VIDEO] * (frames * cells), END, *range(30, 62)]])
    grid = torch.tensor([[frames, 2 * shape.side, 2 * shape.side]])
    kinds = torch.where(ids == VIDEO, 2, 0)
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=grid)
    encoded = BaseModelOutputWithPooling(pooler_output=(features,))
    return {
        "input_ids": ids.to(place.device),
        "position_ids": positions.to(place.device),
        "mm_encoder_outputs": {"video": encoded},
        "logits_to_keep": 1,
    }


def _prefill(model: Any, prompt: dict[str, Any]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(**prompt, use_cache=True).logits
        return logits

    return run


def _restart(model: Any) -> None:
    torch._dynamo.reset()
    segmo.uncompile(model)


def check_prefill(place: Place, shape: Shape, frames: int, lowering: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Two layers: logits on generated kernels against the dense-mask reference, the tokens that are kept, and how often
    the host waits for the device in a prefill after the first.
    """
    model = build_model(place, shape, 2, dtype)
    prompt = build_prompt(place, model, shape, frames, dtype)
    run = _prefill(model, prompt)
    found: dict[str, Any] = {}
    stops: list[str] = []
    for name in (lowering, "reference"):
        _restart(model)
        segmo.compile(model, keep=1.0, segments=SEGMENTS, lowering=name)
        logits = run()
        _restart(model)
        segmo.compile(model, keep=0.25, segments=SEGMENTS, lowering=name)
        run()
        stops = place.stops(run) if name == lowering else stops
        prefill = segmo.last_report().prefill
        assert prefill is not None
        found[name] = logits, prefill.kept()
    (logits, kept), (expected, expected_kept) = found[lowering], found["reference"]
    error = relative_error(logits, expected)
    # A few tokens may change places where novelty is equal to rounding.
    different = len(set(kept.tolist()) ^ set(expected_kept.tolist()))
    checks = [
        {"check": "prefill's logits", "error": error, "ok": error < (2e-2 if dtype == torch.bfloat16 else 1e-4)},
        {"check": "prefill's kept tokens", "error": different, "ok": different <= len(kept) // 100},
    ]
    if place.on_gpu:
        checks.append({"check": "prefill's waits", "error": len(stops), "ok": len(stops) <= 2, "where": stops})
    return checks


def time_prefill(
    place: Place, shape: Shape, frames: int, lowering: str, dtype: torch.dtype, may_start: Callable[[], bool]
) -> list[dict[str, Any]]:
    """Eager, then each way, then on a GPU inductor alone: seconds of a prefill and of its first call, which compiles.

    A way for which there is no time is ``{"way": ..., "left_out": True}``.
    """
    layers = shape.layers_that_fit(place.free_bytes(), dtype.itemsize)
    model = build_model(place, shape, layers, dtype)
    prompt = build_prompt(place, model, shape, frames, dtype)
    run = _prefill(model, prompt)
    length: int = prompt["input_ids"].shape[1]
    rows: list[dict[str, Any]] = []
    for way in ("eager", *WAYS, *(["inductor"] if place.on_gpu else [])):
        if not may_start():
            rows.append({"way": way, "left_out": True})
            continue
        _restart(model)
        if way == "inductor":
            model.compile(dynamic=True)
        elif way in WAYS:
            segmo.compile(model, **WAYS[way], lowering=lowering)
        row: dict[str, Any] = {"way": way, "tokens": length, "kept": length, "layers": layers}
        row["first_call"], row["seconds"] = place.long_seconds(run)
        if way in WAYS:
            report = segmo.last_report()
            assert report.prefill is not None
            row["kept"] = len(report.prefill.kept())
            row["notes"] = list(report.graphs[0].notes)
        rows.append(row)
    _restart(model)  # so that nothing compiled holds the weights
    return rows
