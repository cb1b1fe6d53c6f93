"""Later turns on a cache that was cut: the unmodified model's answer, eager, with the dropped keys hidden by a mask."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from models import FAMILIES, build, prompt
from turns import ask, assert_same, dropped_hidden, next_turn, words

import segmo
from segmo.report.prefill import Prefill
from segmo.runtime.cache import CutLayer

OPTIONS: dict[str, dict[str, Any]] = {
    "segments": {"segments": 2},
    "attention": {"scorer": "attention", "layer": 1, "segments": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _graphs_of_this_module() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    compiled.cache_clear()
    torch._dynamo.reset()


@functools.cache
def compiled(family: str, options: str = "segments") -> Any:
    return segmo.compile(build(family), keep=0.5, strict=True, **OPTIONS[options])


def kept() -> Prefill:
    prefill = segmo.last_report().prefill
    assert prefill is not None
    return prefill


def layer_of(cache: Any) -> CutLayer:
    assert all(isinstance(layer, CutLayer) for layer in cache.layers)
    return cache.layers[0]  # type: ignore[no-any-return]


def talk(model: Any, inputs: Any, questions: tuple[int, ...], **more: Any) -> list[Any]:
    """Answers of a conversation: a prompt with video, then questions of so many tokens on the same cache."""
    answers = [ask(model, inputs, **more)]
    for number, count in enumerate(questions):
        inputs = next_turn(inputs, answers[-1].sequences, words(count, len(inputs["input_ids"]), number))
        answers.append(ask(model, inputs, past_key_values=answers[-1].past_key_values, **more))
    return answers


@pytest.mark.parametrize(
    ("family", "options"), [*((family, "segments") for family in FAMILIES), ("qwen3_vl", "attention")]
)
def test_three_turns_equal_eager_with_the_dropped_keys_hidden(family: str, options: str) -> None:
    model, inputs, first_layer = compiled(family, options), prompt(family), OPTIONS[options].get("layer", 0)
    mine = talk(model, inputs, (5, 3))
    plain, prefill = build(family), kept()
    with dropped_hidden(plain, prefill, first_layer):
        theirs = talk(plain, inputs, (5, 3))
    for found, expected in zip(mine, theirs, strict=True):
        assert_same(found, expected)
    cache, whole = mine[-1].past_key_values, theirs[-1].past_key_values
    assert cache.get_seq_length() == whole.get_seq_length()
    dropped = inputs["input_ids"].shape[1] - prefill.index.shape[1]  # type: ignore[union-attr]
    assert dropped > 0
    for layer, full in zip(cache.layers, whole.layers, strict=True):
        assert (layer.seen, layer.held) == (whole.get_seq_length(), whole.get_seq_length() - dropped)
        assert layer.keys.shape[-2] == layer.held == layer.positions.shape[1]
        rows = layer.positions[0]
        torch.testing.assert_close(layer.keys, full.keys[:, :, rows], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(layer.values, full.values[:, :, rows], atol=2e-5, rtol=1e-4)
