"""Each pass by itself: how many places it changes, and the ops before and after."""

from __future__ import annotations

import operator
import re
from typing import Any

import pytest
import torch
from models import FAMILIES, LAYERS, build, left_padded, prompt
from packaging.version import Version

import segmo
from segmo.passes.graph import upstream
from segmo.passes.reasons import REASONS
from segmo.passes.runner import PassRecord

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def records(options: dict[str, Any]) -> dict[str, PassRecord]:
    """The pass records of a Qwen2-VL prefill."""
    model = build("qwen2_vl")
    segmo.compile(model, **options)
    model.generate(**prompt("qwen2_vl"), max_new_tokens=1, do_sample=False)
    return {record.name: record for record in segmo.last_report().graphs[0].passes}


def change(record: PassRecord) -> dict[str, int]:
    names = {*record.ops_before, *record.ops_after}
    deltas = {name: record.ops_after.get(name, 0) - record.ops_before.get(name, 0) for name in names}
    return {name: delta for name, delta in deltas.items() if delta}


def test_select_tokens_gathers_what_crosses_the_cut_once() -> None:
    record = records({"keep": 0.5, "pipeline": "select-tokens"})["select-tokens"]
    assert (record.matches, record.misses) == (1, ())
    delta = change(record)
    # embeddings, cos and sin for all layers together, and frame and scene for the passes that follow.
    # For a torch before 2.14 transformers makes a mask in the graph, which is cut in both directions.
    made = Version(torch.__version__) < Version("2.14")
    assert ("attn_mask = gather_tokens" in record.text_after) == made
    assert delta["segmo.gather_tokens.default"] == 5 + 2 * made
    assert delta["segmo.select_tokens.default"] == delta["segmo.scan_video.default"] == 1
    assert record.ops_after["scaled_dot_product_attention"] == LAYERS
    assert "scatter_tokens" not in record.text_after


def test_segment_attention_replaces_every_layer() -> None:
    record = records({"keep": 1.0, "segments": 2, "pipeline": "segment-attention"})["segment-attention"]
    assert (record.matches, record.misses) == (LAYERS, ())
    delta = change(record)
    assert delta["scaled_dot_product_attention"] == -LAYERS
    assert delta["segmo.segment_attention.default"] == LAYERS
    assert delta["segmo.attention_schedule.default"] == 1


def test_inject_context_adds_one_input_to_the_schedule() -> None:
    found = records({"keep": 1.0, "segments": 2, "pipeline": "segment-attention,inject-context"})
    record = found["inject-context"]
    assert record.matches == 1
    # The relevance takes the scan's mean, and the host's look at the scenes takes the relevance along: one item each.
    expected = {"segmo.context_tokens.default": 1, "segmo.embedding_relevance.default": 1, "getitem": 2}
    assert change(record) == expected


@pytest.mark.parametrize(("lowering", "implementation"), [("auto", "flash"), ("reference", "reference")])
def test_lower_kernels_says_what_it_picked(lowering: str, implementation: str) -> None:
    record = records({"keep": 1.0, "segments": 2, "lowering": lowering})["lower-kernels"]
    assert record.matches == LAYERS
    assert change(record) == {}
    assert record.text_after.count(f"'{implementation}'") == LAYERS
    assert any(note.startswith(f"lower-kernels: {implementation}") for note in segmo.last_report().graphs[0].notes)


@pytest.mark.parametrize(
    "off", ["select-tokens", "segment-attention", "inject-context", "lower-kernels", "trim-last-layer"]
)
def test_each_pass_can_be_switched_off(off: str) -> None:
    found = records({"keep": 0.5, "segments": 2, "disable": off})
    assert off not in found
    for name, record in found.items():
        follows = {"segment-attention": {"inject-context", "lower-kernels"}}.get(off, set())
        masked = off == "segment-attention" and Version(torch.__version__) < Version("2.14")  # so keys are repeated
        idle = follows | {"shard-segments", "outline-layers"} | (set() if masked else {"group-heads"})
        assert bool(record.matches) == (name not in idle), name


def test_the_signature_of_the_model_stays() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    with torch.no_grad():
        eager = model(**inputs, output_hidden_states=True)
        segmo.compile(model, keep=0.5, segments=2)
        compiled = model(**inputs, output_hidden_states=True)
    assert list(compiled.keys()) == list(eager.keys())
    assert compiled.logits.shape == eager.logits.shape
    assert compiled.logits.dtype == eager.logits.dtype
    assert [h.shape for h in compiled.hidden_states] == [h.shape for h in eager.hidden_states]


def test_every_reason_says_what_to_do() -> None:
    for reason in REASONS.values():
        assert reason.text
        assert reason.remedy


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_own_mask_of_n_by_n_is_gone(family: str) -> None:
    """For a padded batch transformers builds one; nothing is left that makes it."""
    model, inputs = build(family), left_padded(prompt(family, batch=2))
    segmo.compile(model, keep=0.5, segments=2)
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    by_name = {record.name: record for record in segmo.last_report().graphs[0].passes}
    square = re.compile(r"\[[^\]]*\b(s\d+), \1\]")

    def squares(text: str) -> int:
        return sum(bool(square.search(line)) for line in text.splitlines() if "def forward" not in line)

    assert squares(by_name["select-tokens"].text_before) >= 3
    assert squares(by_name["segment-attention"].text_after) == 0


def test_what_was_written_into_a_tensor_is_where_it_comes_from() -> None:
    """A mask that a layer fills in place comes from what was filled in; what is written later does not count."""
    graph = torch.fx.Graph()
    index, later = graph.placeholder("index"), graph.placeholder("later")
    empty = graph.call_function(torch.zeros, (2, 4))
    row = graph.call_function(operator.getitem, (empty, 0))
    graph.call_method("scatter_", (row, -1, index, 1))
    mask = graph.call_method("ne", (empty, 0))
    graph.call_method("add_", (empty, later))
    assert index in upstream(mask)
    assert later not in upstream(mask)
