"""Layers that are stamped out where others change, between two of them, what a layer asks for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from read_layers import assert_same, compiled, counts, layers_of, logits, model_of, one_by_one
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from segmo.compat import regions

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

if regions.regions is None:
    pytest.skip("this torch reads every layer", allow_module_level=True)


class Held:
    """What a user's attention asks, and a hook changes between two layers."""


class HeldCache:
    """The same by another name."""


HELD, NUMBERS = Held(), {"scale": 1.0}
FEW: list[Any] = []


def in_a_cell(start: bool) -> float:
    if start:
        scale = 1.0

        def bump() -> float:
            nonlocal scale
            scale = scale + 1.0
            return scale

        HELD.bump, HELD.scale = bump, lambda: scale  # type: ignore[attr-defined]
    return float(HELD.scale())  # type: ignore[attr-defined]


def in_a_dict(start: bool) -> float:
    if start:
        NUMBERS["scale"] = 1.0
    return NUMBERS["scale"]


def in_a_list(start: bool) -> float:
    if start:
        FEW.clear()
        FEW.extend([FEW, None])  # a list may hold itself, and one thing twice
    return float(len(FEW))


def in_a_list_of_an_object(start: bool) -> float:
    if start:
        HELD.few = [1.0]  # type: ignore[attr-defined]
    return float(len(HELD.few))  # type: ignore[attr-defined]


def in_a_cache_of_another_kind(start: bool) -> float:
    if start:
        HELD.cache = HeldCache()  # type: ignore[attr-defined]
        HELD.cache.scale = 1.0  # type: ignore[attr-defined]
    return float(HELD.cache.scale)  # type: ignore[attr-defined]


def bump() -> None:
    """All of them are another number from now on."""
    HELD.bump()  # type: ignore[attr-defined]
    HELD.few.append(1.0)  # type: ignore[attr-defined]
    HELD.cache.scale = HELD.cache.scale + 1.0  # type: ignore[attr-defined]
    NUMBERS["scale"] = NUMBERS["scale"] + 1.0
    FEW.append(None)
    FEW.append(None)


PLACES = (in_a_cell, in_a_dict, in_a_list, in_a_list_of_an_object, in_a_cache_of_another_kind)


@pytest.mark.parametrize("place", PLACES)
def test_what_others_change_between_two_layers(
    place: Callable[[bool], float], captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook begins it in front of the decoder, another one changes it, and an attention of the user's asks for it."""

    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = model_of(rounds=3)
        model.model.language_model.register_forward_pre_hook(lambda *_: [each(True) for each in PLACES] and None)
        layers_of(model)[3].register_forward_pre_hook(lambda *_: bump())
        config = copy.copy(layers_of(model)[0].self_attn.config)
        config._attn_implementation = "segmo_test_asking"
        for layer in layers_of(model):
            layer.self_attn.config = config
        return logits(compiled(model, keep=1, segments=2), 1)

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(*args: Any, **kwargs: Any) -> Any:
        result, weights = sdpa(*args, **kwargs)
        return result * place(False), weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "segmo_test_asking", attend)
    answer = run()
    assert counts(captured_layers) == [(5, 2)]
    one_by_one(monkeypatch)
    assert_same(run(), answer)
