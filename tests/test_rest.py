"""Who computes the rest of a graph: what was measured of inductor decides on the CPU, and its failure harms nobody."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import platformdirs
import pytest
import torch
from models import build, prompt
from torch._inductor import config as inductor_config
from typer.testing import CliRunner

import segmo
from segmo.cli import app
from segmo.errors import CompileError
from segmo.inspection.environment import as_text, examine
from segmo.options import Options
from segmo.runtime.cost.device import DEVICES
from segmo.runtime.cost.gain import VERSION, Fusion, Gain, processor
from segmo.runtime.cost.store import devices_folder, load_device, save_device
from segmo.runtime.rest import WORTH, choose_rest

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FP32 = torch.float32


def gain(ratio: float, low: float = 0.0) -> Gain:
    return Gain(3072, ratio, low or 0.98 * ratio, 1.02 * ratio, 5.0)


def fusion(prefill: Gain | None, decode: Gain | None, **other: Any) -> Fusion:
    measured_on = {"date": "2026-11-29", "processor": processor(), "torch": torch.__version__}
    return Fusion(prefill, decode, **measured_on | other)


def store(measured: Fusion | None, folder: Path | None = None) -> Path:
    return save_device(dataclasses.replace(DEVICES["cpu"], fusion=measured), CPU, FP32, folder)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMO_CACHE", str(tmp_path / "segmo"))


@pytest.fixture
def one_layer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models of one decoder layer, and no compiled code from other tests: inductor takes seconds for a layer."""
    monkeypatch.setattr(models, "LAYERS", 1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_tests_do_not_read_what_the_user_measured() -> None:
    assert load_device(CPU, FP32) is None
    assert not devices_folder().is_relative_to(platformdirs.user_cache_path("segmo"))


FAST, SLOW = fusion(gain(1.5), gain(1.02)), fusion(gain(1.02), gain(1.5))


@pytest.mark.parametrize(
    ("measured", "kind", "inductor", "why"),
    [
        (FAST, "prefill", True, "1.50x faster than as it is on this machine, calibrated 2026-11-29"),
        (FAST, "decode", False, "inductor 1.02x at a decode step on this machine: not worth its compilation"),
        (SLOW, "prefill", False, "inductor 1.02x on this machine: not worth its compilation"),
        (SLOW, "decode", True, "1.50x faster"),
        (FAST, "other", False, "neither a prefill nor a decode step"),
        (fusion(gain(WORTH), None), "prefill", True, f"{WORTH}x faster"),
        (fusion(gain(WORTH - 0.01), None), "prefill", False, "not worth its compilation"),
        (fusion(gain(1.5, low=0.9), None), "prefill", False, "0.90x to 1.53x .* not sure"),
        (fusion(None, None, failed="no compiler"), "prefill", False, "failed when .* calibrated, 2026-11-29: no comp"),
        (fusion(gain(1.5), None, torch="2.0"), "prefill", False, "with torch 2.0: `segmo calibrate --dtype float32` m"),
        (fusion(gain(1.5), None, processor="Z80"), "prefill", False, "another processor, Z80: `segmo calibrate"),
        (fusion(gain(1.5), None, version=0), "prefill", False, "not measured in float32 with 1 thread: `segmo calib"),
        (None, "prefill", False, "not measured in float32 with 1 thread: `segmo calibrate --dtype float32` does"),
    ],
)
def test_what_was_measured_decides_on_the_cpu(
    tmp_path: Path, measured: Fusion | None, kind: str, inductor: bool, why: str
) -> None:
    store(measured, tmp_path)
    with torch.no_grad():
        rest = choose_rest(Options(), kind, CPU, FP32, tmp_path)
        other = choose_rest(Options(), kind, CPU, torch.bfloat16, tmp_path)
    assert (rest.inductor, rest.must, other.inductor) == (inductor, False, False)
    assert re.search(why, rest.why), rest.why


@pytest.mark.parametrize(
    ("options", "device", "inductor"),
    [
        ({"lowering": "inductor"}, CPU, True),
        ({}, CUDA, True),
        ({"lowering": "flash"}, CPU, False),
        ({"lowering": "reference"}, CUDA, False),
        ({"ranks": "all"}, CPU, False),
        ({"ranks": "all", "lowering": "inductor"}, CPU, True),
    ],
)
def test_what_is_asked_for_and_what_ranks_share_needs_no_figures(
    tmp_path: Path, options: dict[str, Any], device: torch.device, inductor: bool
) -> None:
    store(FAST, tmp_path)
    with torch.no_grad():
        rest = choose_rest(Options(**options), "prefill", device, FP32, tmp_path)
    assert (rest.inductor, rest.must) == (inductor, inductor)


def test_gradients_files_of_before_and_broken_ones_leave_the_graph_as_it_is(tmp_path: Path) -> None:
    file = store(FAST, tmp_path)
    assert not choose_rest(Options(), "prefill", CPU, FP32, tmp_path).inductor  # gradients are recorded
    stored = json.loads(file.read_text())
    del stored["fusion"]
    with torch.no_grad():
        for text in (json.dumps(stored), json.dumps({**stored, "fusion": {"version": VERSION}}), "{", "[]"):
            file.write_text(text)
            assert not choose_rest(Options(), "prefill", CPU, FP32, tmp_path).inductor
        file.write_text(json.dumps(stored))
        assert load_device(CPU, FP32, tmp_path) == DEVICES["cpu"]


def logits(model: Any, frames: int = 6, tokens: int = 1) -> Any:
    """Of all steps of ``generate``."""
    out = model.generate(
        **prompt(model.config.model_type, frames=frames),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits)


def notes(kind: str = "prefill") -> list[str]:
    graphs = [graph for graph in segmo.last_report().graphs if graph.kind == kind]
    return [note for graph in graphs for note in graph.notes if note.startswith("rest of the graph: ")]


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache", "one_layer")
def test_where_it_wins_inductor_compiles_one_graph_for_all_lengths_and_the_answer_is_the_same() -> None:
    """Deepstack's data-dependent rows and symbolic K through AOT autograd."""
    lengths = (6, 8)
    model = segmo.compile(build("qwen3_vl"), keep=0.5, segments=2)
    expected = [logits(model, frames, 2) for frames in lengths]
    assert notes() == [
        "rest of the graph: as it is (not measured in float32 with 1 thread: `segmo calibrate --dtype float32` does)"
    ]
    store(FAST)
    torch._dynamo.reset()
    segmo.compile(model, keep=0.5, segments=2)
    for frames, eager in zip(lengths, expected, strict=True):
        torch.testing.assert_close(logits(model, frames, 2), eager, rtol=1e-4, atol=1e-5)
    start = "rest of the graph: by inductor (1.50x faster than as it is on this machine, calibrated 2026-11-29; "
    (note,) = notes()
    assert note.startswith(start)
    (note,) = notes("decode")
    assert note.endswith("as it is (inductor 1.02x at a decode step on this machine: not worth its compilation)")
    assert start in str(segmo.last_report())


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache", "one_layer")
@pytest.mark.parametrize("answers", [False, True])
def test_without_a_working_compiler_the_graph_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: bool
) -> None:
    """There is none, or one that answers and fails: inductor finds out early or late."""
    model = segmo.compile(build("qwen2_vl"), keep=0.5, segments=2)
    expected = logits(model)
    store(FAST)
    compiler = tmp_path / "c++"
    if answers:
        compiler.write_text('#!/bin/sh\ntest "$1" = --version\n')
        compiler.chmod(0o755)
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with inductor_config.patch({"cpp.cxx": (None, str(compiler)), "cpp.vec_isa_ok": True}):
        segmo.compile(model, keep=0.5, segments=2)
        assert torch.equal(logits(model), expected)
        (note,) = notes()
        assert note.startswith("rest of the graph: as it is (inductor, 1.50x faster than as it is on this machine, ")
        assert "failed here: " in note
        assert "inductor failed, so the graph is run as it is: " in capsys.readouterr().err
        if not answers:
            torch._dynamo.reset()
            with pytest.raises(CompileError, match=r'No working C\+\+ compiler.*lowering="flash" runs that as it is'):
                logits(segmo.compile(model, keep=0.5, lowering="inductor"))


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_calibrate_measures_it_and_doctor_tells(tmp_path: Path) -> None:
    build("qwen2_vl").config.save_pretrained(tmp_path / "model")
    with inductor_config.patch(cpp_cache_precompile_headers=False):  # that takes longer than these kernels
        done = CliRunner().invoke(
            app,
            ["calibrate", "--dtype", "float32", "--no-link", "--model", str(tmp_path / "model")],
            catch_exceptions=False,
        )
    assert done.exit_code == 0
    device = load_device(CPU, FP32)
    assert device is not None
    measured = device.fusion
    assert measured is not None
    assert (measured.failed, measured.stale()) == ("", "")
    for found, rows in ((measured.prefill, 3072), (measured.decode, 1)):
        assert found is not None
        assert found.rows == rows
        assert 0 < found.low <= found.ratio <= found.high
        assert found.compile_seconds > 0
        assert f"{found.ratio:.2f}x ({found.low:.2f} to {found.high:.2f})" in done.output
        assert f"compiled in {found.compile_seconds:.1f} s" in done.output
    assert done.output.count('lowering="auto"') == 2
    assert "prefill" in next(line for line in as_text(examine()).splitlines() if line.startswith("inductor"))
