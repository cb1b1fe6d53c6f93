"""The pass itself: what it changes in a graph, and why it leaves one alone."""

from __future__ import annotations

import models
import pytest
import torch
from crew import Crew
from rank_prefill import ops_of_prefill

import segmo
from segmo.passes.reasons import REASONS
from segmo.runtime.cost.device import DEVICES
from segmo.runtime.cost.shape import PRESETS
from segmo.runtime.distributed.session import Settings, fingerprint


def test_alone_it_does_nothing_and_says_why():
    model = models.build("qwen2_vl")
    segmo.compile(model, keep=0.5)
    model.generate(**models.prompt("qwen2_vl"), max_new_tokens=1)
    prefill = next(g for g in segmo.last_report().to_dict()["graphs"] if g["kind"] == "prefill")
    mine = next(one for one in prefill["passes"] if one["name"] == "shard-segments")
    assert mine["matches"] == 0
    assert [miss["reason"] for miss in mine["misses"]] == [REASONS["no-group"].text]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["gather", "sharded"])
def test_ops_before_and_after(cache):
    crew = Crew(2)
    try:
        for before, after in crew.run(ops_of_prefill, "qwen3_vl", cache):
            assert before["segmo.segment_attention.default"] == models.LAYERS
            assert "segmo.segment_attention.default" not in after
            assert after["segmo.rank_attention.default"] == models.LAYERS
            assert after["segmo.plan_ranks.default"] == after["segmo.rank_positions.default"] == 1
            assert after["segmo.from_home.default"] == 1  # the logits
            joined = 2 * models.LAYERS if cache == "gather" else 0
            assert after.get("segmo.join_tokens.default", 0) == joined
            assert after["segmo.rank_rows.default"] == 2  # deepstack's layers
    finally:
        crew.close()


def test_settings_travel_as_text():
    settings = Settings("0", PRESETS["qwen2.5-vl-7b"], (DEVICES["h100"], DEVICES["a100"]), "balanced", True, "gather")
    assert Settings.from_json(settings.to_json()) == settings


def test_fingerprints_tell_prompts_apart():
    one, two = torch.arange(5), torch.arange(1, 6)
    assert torch.equal(fingerprint(one, None), fingerprint(one.clone(), None))
    assert not torch.equal(fingerprint(one, None), fingerprint(two, None))
    assert not torch.equal(fingerprint(one, None), fingerprint(one, two))
