"""Hidden states that a call asks for, also of a model that was never called before."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import build, prompt

import segmo

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# The encoder of the second one has its own hidden states collected in every call, the first one's never.
FAMILIES = ("qwen2_vl", "llava_onevision")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_are_eagers(family: str) -> None:
    inputs = prompt(family)
    eager = build(family)(**inputs, output_hidden_states=True)
    compiled = segmo.compile(build(family), keep=1, segments=1, strict=True)(**inputs, output_hidden_states=True)
    assert len(compiled.hidden_states) == len(eager.hidden_states)
    for mine, wanted in zip(compiled.hidden_states, eager.hidden_states, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_dropped_tokens_have_none_behind_the_first_layer(family: str) -> None:
    """Also where other calls came before: the hooks are put there once, and the answer stays."""
    inputs = prompt(family)
    model = segmo.compile(build(family), keep=0.5, segments=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        before = model(**inputs).logits
        found = model(**inputs, output_hidden_states=True)
        again = model(**inputs, output_hidden_states=True)
    kept = len(segmo.last_report().prefill.kept())
    assert found.hidden_states[0].isfinite().all()
    for hidden in found.hidden_states[1:]:
        assert int(hidden[0].isfinite().all(-1).sum()) == kept
    torch.testing.assert_close(found.logits, before, equal_nan=True)
    for mine, wanted in zip(again.hidden_states, found.hidden_states, strict=True):
        torch.testing.assert_close(mine, wanted, equal_nan=True)


@torch.no_grad()
def test_a_configuration_asks_as_well() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    model.config.output_hidden_states = model.config.get_text_config().output_hidden_states = True
    out = segmo.compile(model, keep=0.5, segments=2, strict=True)(**inputs)
    assert len(out.hidden_states) == model.config.get_text_config().num_hidden_layers + 1
