"""A model that prints, warns or logs in the midst of a call: still one graph, and what it says is heard."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import video_families
from models import build, prompt
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

import segmo

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

LOGGER = logging.getLogger("someone.else")
THEIRS = transformers_logging.get_logger("transformers.someone")


class Telling(nn.Module):
    """A part of a model that says something whenever it is called."""

    def __init__(self, inner: nn.Module, say: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.inner, self.say = inner, say

    def forward(self, hidden: Tensor) -> Tensor:
        self.say(hidden)
        out: Tensor = self.inner(hidden)
        return out


WAYS: dict[str, Callable[[Tensor], None]] = {
    "print": lambda x: print("a word of the model"),
    "warn": lambda x: warnings.warn("a word of the model"),  # noqa: B028  # as people write it
    "warning": lambda x: LOGGER.warning("a word of the %s", "model"),
    "info": lambda x: LOGGER.info("a word of the model, %s", 7),
    "once": lambda x: THEIRS.warning_once("a word of the model"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_word_in_the_midst_of_the_decoder_leaves_it_one_graph(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5, strict=True)
    expected = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    layer = model.model.language_model.layers[1]
    layer.mlp = Telling(layer.mlp, WAYS[way])
    segmo.compile(model, keep=0.5, strict=True)
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.setLevel(logging.INFO)
    for logger in (LOGGER, THEIRS):
        logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    for logger in (LOGGER, THEIRS):
        logger.removeHandler(handler)
    assert torch.equal(found, expected)
    assert [graph.kind for graph in segmo.last_report().graphs] == ["prefill", "decode"]
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 12
    said = [capfd.readouterr().out, *heard, *(str(each.message) for each in caught)]
    assert any("a word of the model" in each for each in said)


def test_a_word_that_breaks_the_graph_is_told() -> None:
    """Dynamo moves no call with keyword arguments; where such a one cuts the decoder in two, it runs as it was."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    with torch.no_grad():
        expected = model(**inputs, logits_to_keep=1).logits
    layer = model.model.language_model.layers[1]
    layer.mlp = Telling(layer.mlp, lambda x: warnings.warn("a word", UserWarning, stacklevel=2))
    segmo.compile(model, keep=0.5)
    with torch.no_grad(), pytest.warns(UserWarning, match="TORCH_LOGS=.graph_breaks. says what in the model breaks"):
        found = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_weights_that_sdpa_does_not_give_cost_no_graph() -> None:
    """transformers warns of them in each layer, and gives none."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5, strict=True)
    with torch.no_grad():
        expected = model(**inputs, logits_to_keep=1).logits
        out = model(**inputs, logits_to_keep=1, output_attentions=True)
    torch.testing.assert_close(out.logits, expected)
    assert not out.attentions
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 12


def test_the_loss_of_a_model_that_logs_in_front_of_it() -> None:
    """nemotron_h_omni's config names no loss that transformers knows, of which it warns between decoder and loss."""
    inputs: dict[str, Any] = video_families.prompt("nemotron_h_omni", 6)
    model = video_families.build("nemotron_h_omni")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == video_families.IMAGE, -100)
    segmo.compile(model, keep=0.5, segments=1)
    with torch.no_grad():
        out = model(**inputs, labels=labels)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    assert prefill.index is not None
    kept = prefill.index[0][:-1]  # nothing comes behind the last one
    logits, wanted = out.logits[0, kept], labels[0, kept + 1]
    assert out.logits.isnan().any()  # at dropped tokens
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(logits, wanted), rtol=1e-4, atol=1e-4)
