"""Every pass that did not apply, on every graph, says why, where in the user's program, and what would change it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, prompt

import segmo
from segmo.passes.reasons import Miss
from segmo.passes.runner import PassRecord

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def _text(inputs: dict[str, Any]) -> dict[str, Any]:
    ids = torch.arange(10, 22)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}


def _as_it_is(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs


def _missed(record: PassRecord) -> tuple[Miss, ...]:
    assert record.matches or record.misses, record.name
    return record.misses


@pytest.mark.parametrize(
    ("options", "prepare"),
    [
        ({"keep": 0.5}, _as_it_is),  # what is left: one process, and the decode step
        ({"keep": 1.0, "segments": 1, "context": 0}, _as_it_is),
        ({"keep": 0.5, "scorer": "attention", "layer": 7}, _as_it_is),
        ({"keep": 0.5}, _text),
    ],
)
@pytest.mark.filterwarnings("ignore:SegMo left")
def test_what_did_not_apply_has_a_line_of_a_file_and_a_remedy(
    options: dict[str, Any], prepare: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    model = segmo.compile(build("qwen2_vl"), **options)
    with torch.no_grad():
        model.generate(**prepare(prompt("qwen2_vl")), max_new_tokens=2, do_sample=False)
    report = segmo.last_report()
    misses = [miss for graph in report.graphs for record in graph.passes for miss in _missed(record)]
    assert misses
    for miss in misses:
        assert miss.reason
        assert miss.remedy
        assert miss.source is not None, miss
        path, number, code = miss.source.split(":", 2)
        assert Path(path).read_text().splitlines()[int(number) - 1].strip() == code.strip()


def test_an_option_that_switches_a_pass_off_points_to_the_call() -> None:
    model = segmo.compile(build("qwen2_vl"), keep=1.0)
    with torch.no_grad():
        line = inspect.currentframe().f_lineno + 1
        model(**prompt("qwen2_vl"), logits_to_keep=1)
    (miss,) = segmo.last_report().graphs[0].passes[0].misses
    assert miss.code == "keep-all"
    assert miss.source == f'{__file__}:{line}: model(**prompt("qwen2_vl"), logits_to_keep=1)'
    assert f"not applied: select-tokens: keep=1 keeps every token at {miss.source}" in str(segmo.last_report())


def test_the_warning_names_the_line_of_the_model() -> None:
    model = segmo.compile(build("qwen2_vl").train(), keep=0.5)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match=r"drops weights at random \(to change that: call model.eval\(\)\), at .*:\d+:"),
    ):
        model(**prompt("qwen2_vl"), logits_to_keep=1)
