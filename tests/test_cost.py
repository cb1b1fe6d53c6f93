"""The cost model: sizes from configs, rates from measurements, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segmo.errors import PlanError
from segmo.options import Options
from segmo.runtime.cost.device import DEVICES, device_named
from segmo.runtime.cost.gain import VERSION, processor
from segmo.runtime.cost.link import with_link
from segmo.runtime.cost.measure import Timer, measure_device
from segmo.runtime.cost.memory import check_memory, rank_memory
from segmo.runtime.cost.model import CostModel
from segmo.runtime.cost.shape import PRESETS, ModelShape, shape_of
from segmo.runtime.cost.store import load_device, planning_device, save_device
from segmo.runtime.rest import choose_rest

CPU = torch.device("cpu")
TINY = ModelShape(hidden=64, layers=2, heads=4, kv_heads=2, head_size=16, intermediate=96, vocab=96)
sizes = st.integers(0, 10_000)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_layer_has_as_many_weights_as_the_shape_says(family):
    model = models.build(family)
    shape = shape_of(model.config)
    layers = model.base_model.language_model.layers
    matrices = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    assert shape.layers * shape.layer_parameters == matrices
    tower = [p for name, p in model.named_parameters() if "blocks" in name or "vision_tower.encoder.layers" in name]
    assert shape.vision is not None
    assert shape.vision.parameters() == sum(p.numel() for p in tower if p.dim() == 2)


def test_a_config_without_sizes_is_refused():
    with pytest.raises(PlanError, match="num_attention_heads"):
        shape_of(object())


@given(st.sampled_from(sorted(DEVICES)), sizes, sizes, sizes, st.integers(1, 64))
def test_more_work_never_takes_less_time(name, tokens, pairs, more, world):
    cost = CostModel(PRESETS["qwen2.5-vl-7b"], DEVICES[name])
    assert cost.dense_seconds(tokens + more) >= cost.dense_seconds(tokens) >= 0
    assert cost.attention_seconds(pairs + more, tokens) >= cost.attention_seconds(pairs, tokens) >= 0
    assert cost.vision_seconds(tokens + more, 64) >= cost.vision_seconds(tokens, 64) >= 0
    assert cost.gather_seconds(tokens + more, world) >= cost.gather_seconds(tokens, world) >= 0
    assert cost.gather_seconds(tokens, 1) == 0


def test_memory_counts_weights_cache_activations_and_what_arrives():
    need = rank_memory(TINY, tokens=10, cached=20, received=5, features=7)
    assert need.cache == 20 * 2 * 2 * 16 * 2 * 2
    assert need.exchanged == 5 * 2 * 2 * 16 * 2
    assert need.embeddings == 7 * 64 * 2
    assert need.total == need.weights + need.cache + need.activations + need.exchanged + need.embeddings
    small = dataclasses.replace(DEVICES["cpu"], memory_bytes=need.total)
    check_memory([need], [small])
    with pytest.raises(PlanError, match=r"rank 1 .*weights.*cache.*activations"):
        check_memory([need, need], [small, dataclasses.replace(small, memory_bytes=need.total - 1)])


def test_a_measured_device_survives_storage(tmp_path):
    measured = measure_device(CPU, torch.float32, TINY, Timer(CPU, runs=1))
    assert measured.gemm_flops > 0
    assert measured.attention_flops > 0
    assert measured.memory_bytes_per_s > 0
    assert measured.tile_keys >= 0
    assert processor() in measured.source  # a plan prints it
    file = save_device(measured, CPU, torch.float32, tmp_path)
    assert load_device(CPU, torch.float32, tmp_path) == measured
    assert planning_device("calibrated", CPU, torch.float32, tmp_path) == measured
    assert planning_device("auto", CPU, torch.float32, tmp_path) == measured
    assert load_device(CPU, torch.bfloat16, tmp_path) is None
    file.write_text(json.dumps({"name": "x"}))
    with pytest.raises(PlanError, match="run `segmo calibrate` again"):
        load_device(CPU, torch.float32, tmp_path)


FUSION = {
    "prefill": {"rows": 8, "ratio": 1.2, "low": 1.1, "high": 1.3, "compile_seconds": 2.0},
    "decode": None,
    "date": "2026-11-30",
    "processor": "Z80",
    "torch": "2.14.1",
    "version": VERSION,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gemm_flops": 0}, "gemm_flops is 0"),
        ({"gemm_flops": "fast"}, "gemm_flops is 'fast'"),
        ({"link_bytes_per_s": None}, "link_bytes_per_s is None"),
        ({"call_seconds": -1.0}, "call_seconds is -1.0"),
        ({"name": 7}, "name is 7, no text"),
        ({"fusion": {**FUSION, "prefill": {**FUSION["prefill"], "ratio": "2x"}}}, "ratio is '2x'"),
        ({"fusion": {**FUSION, "prefill": {**FUSION["prefill"], "low": None}}}, "low is None"),
        ({"fusion": {**FUSION, "torch": 2.14}}, "torch is 2.14, no text"),
    ],
)
def test_a_stored_device_with_wrong_values_is_refused(wrong, message, tmp_path):
    stored = {**dataclasses.asdict(DEVICES["cpu"]), "fusion": FUSION}
    file = save_device(DEVICES["cpu"], CPU, torch.float32, tmp_path)
    file.write_text(json.dumps(stored))
    assert load_device(CPU, torch.float32, tmp_path).fusion.prefill.ratio == 1.2
    file.write_text(json.dumps({**stored, **wrong}))
    with pytest.raises(PlanError, match=message):
        load_device(CPU, torch.float32, tmp_path)
    with torch.no_grad():
        choice = choose_rest(Options(), "prefill", CPU, torch.float32, tmp_path)  # a prefill goes on without it
    assert not choice.inductor
    assert message in choice.why


@pytest.mark.parametrize("there", ["folder", "loop", "binary"])
def test_what_cannot_be_read_was_not_measured(there, tmp_path):
    """Nobody who only compiles a model has asked for the file, so no prefill fails for it."""
    file = save_device(DEVICES["cpu"], CPU, torch.float32, tmp_path)
    file.unlink()
    if there == "folder":
        file.mkdir()
    elif there == "loop":
        file.symlink_to(file.name)
    else:
        file.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="cannot be read from"):
        load_device(CPU, torch.float32, tmp_path)
    with torch.no_grad():
        assert "cannot be read from" in choose_rest(Options(), "prefill", CPU, torch.float32, tmp_path).why


@pytest.mark.slow
def test_the_link_between_two_ranks_is_measured():
    linked = with_link(DEVICES["cpu"], CPU)
    assert linked.link_seconds > 0
    assert linked.link_bytes_per_s > 0


def test_devices_are_found_by_name(tmp_path):
    assert planning_device("auto", CPU, torch.bfloat16, tmp_path) is DEVICES["cpu"]
    assert device_named("H100") is DEVICES["h100"]
    with pytest.raises(PlanError, match="did you mean 'h100'"):
        device_named("h10")
    with pytest.raises(PlanError, match="run `segmo calibrate`"):
        planning_device("calibrated", CPU, torch.bfloat16, tmp_path)
