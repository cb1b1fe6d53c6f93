"""Small models whose decoder layers Dynamo stamps out, what it captures of them, and how to have each layer read."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from video_families import build, prompt

import segmo
from segmo.compat import regions
from segmo.compiler import backend
from segmo.passes.attentions import decoder_layer
from segmo.runtime import one_layer

Captured = tuple[regions.Layers, "collections.Counter[Any]"]


def captured(monkeypatch: pytest.MonkeyPatch) -> list[Captured]:
    """Of each graph that is captured from now on, its layers and its nodes, as SegMo's passes get them."""
    seen: list[Captured] = []

    def expand(gm: GraphModule) -> regions.Layers:
        layers = regions.expand(gm)
        used = (node for node in gm.graph.nodes if node.users or str(node.target).endswith("_"))
        seen.append((layers, collections.Counter(map(described, used))))
        return layers

    monkeypatch.setattr(backend, "expand", expand)
    return seen


def described(node: torch.fx.Node) -> tuple[Any, ...]:
    """An operator, what kind of tensor comes out of it, and which decoder layer it belongs to."""
    value = node.meta.get("example_value")
    kind = (value.dim(), value.dtype) if isinstance(value, torch.Tensor) else None
    return node.op if node.op == "placeholder" else str(node.target).partition(" at ")[0], kind, decoder_layer(node)


def model_of(family: str = "qwen2_vl", rounds: int = 2, **text: Any) -> Any:
    """Of its layers there are so many of each kind, and twice as many in a family that has one kind."""
    model = build(family, rounds=rounds, **text)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def layers_of(model: Any) -> Any:
    return model.model.language_model.layers


def compiled(model: Any, **options: Any) -> Any:
    segmo.compile(model, **({"keep": 0.5} | options))
    return model


def logits(model: Any, tokens: int, family: str = "qwen2_vl", **more: Any) -> torch.Tensor:
    """Of a prefill and the decode steps behind it."""
    with torch.no_grad():
        result = model.generate(
            **prompt(family), **more, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    return torch.stack(result.logits)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every layer is read."""
    monkeypatch.setattr(one_layer, "reader", lambda: None)
    torch._dynamo.reset()


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def counts(found: list[Any]) -> list[tuple[int, int]]:
    return [(layers.count, layers.read) for layers, _ in found]
