"""The lines of the documentation are run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import CELLS, LAYERS, build, prompt

import segmo

ROOT = Path(__file__).parent.parent


class FromPretrained:
    """Takes the place of the transformers class in the example, whose checkpoint is not here."""

    @staticmethod
    def from_pretrained(path: str) -> Any:
        return build("qwen2_5_vl")


@pytest.mark.usefixtures("fresh_dynamo")
def test_the_readme_s_first_example_runs_as_it_stands_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert 'torch.compile(model, backend="segmo"' in example
    inputs = prompt("qwen2_5_vl", frames=8)
    names: dict[str, Any] = {
        "torch": torch,
        "Qwen2_5_VLForConditionalGeneration": FromPretrained,
        "path": "",
        "inputs": inputs,
    }
    exec(example, names)
    graphs = segmo.last_report().graphs
    assert [graph.kind for graph in graphs] == ["prefill", "decode"]
    assert graphs[0].rewritten
    out = names["model"].generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    kept = inputs["input_ids"].shape[1] - 8 * CELLS["qwen2_5_vl"] * 3 // 4
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [kept] * LAYERS
