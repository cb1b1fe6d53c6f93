"""What SegMo asks of Dynamo while it runs, and that a user who asks for more gets it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from models import build, prompt
from torch._dynamo.side_effects import SideEffects

import segmo

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.skipif(
        not hasattr(torch._dynamo.config, "side_effect_replay_policy"), reason="this torch tells nothing of it"
    ),
]


@pytest.fixture
def worded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Dynamo has put into words of what a graph writes to objects."""
    found: list[str] = []
    original = SideEffects._format_side_effect_message

    def noted(self: Any, var: Any) -> str:
        found.append(original(self, var))
        return found[-1]

    monkeypatch.setattr(SideEffects, "_format_side_effect_message", noted)
    return found


def prefill() -> None:
    """One of a tiny model, whose graph writes keys and values to a cache."""
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5)
    model.generate(**prompt("qwen2_vl", frames=6), max_new_tokens=1, do_sample=False)


def test_what_a_graph_writes_is_not_worded_for_nobody(worded: list[str]) -> None:
    prefill()
    assert worded == []


def test_who_asks_for_it_in_the_log_gets_it(worded: list[str]) -> None:
    torch._logging.set_logs(side_effects=True)
    try:
        prefill()
    finally:
        torch._logging.set_logs()
    assert any("DynamicLayer" in each for each in worded)


def test_what_a_user_has_set_stays(worded: list[str]) -> None:
    config: Any = torch._dynamo.config
    with config.patch(side_effect_replay_policy="warn"), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        prefill()
    assert config.side_effect_replay_policy == "info"
    assert any("side effects" in str(each.message) for each in heard)
