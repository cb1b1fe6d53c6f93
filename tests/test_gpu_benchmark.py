"""``benchmarks/gpu.py``, tiny and interpreted: whoever has a GPU should meet no error that can be met without one."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import interpret

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def _measure(folder: str, starts: str, head_size: int = 64) -> tuple[int, dict[str, Any], str]:
    """In the interpreter. The parts are those of the full plan; sizes alone are others. ``starts`` says for
    each measurement whether there is time to begin it.
    """
    sys.path.insert(0, str(BENCHMARKS))
    os.environ["SEGMO_CACHE"] = folder
    import gpu
    from gpu_attention import Heads
    from gpu_place import Place
    from gpu_prefill import Shape
    from rich.console import Console

    plan = gpu.Plan(
        head_sizes=(head_size,),
        check_length=60,
        scan=(5, 6, 32, 64),
        heads=(Heads(4, 2, 64, 2),),
        tuned_length=40,
        candidates=2,
        lengths=(128, 256),  # FlexAttention's block
        shape=Shape(64, 32, 4, 2, 2, side=2),
        check_frames=12,
        frames=(16, 12),
        lowering="triton",
    )
    place = Place(torch.device("cpu"))

    def keep(result: dict[str, Any]) -> None:
        gpu.write(result, Path(folder))

    result = gpu.measure(place, plan, torch.float32, iter([s == "y" for s in starts]).__next__, keep)
    console = Console(width=160, file=io.StringIO(), record=True)
    code = gpu.report(result, Path(folder), console)
    return code, json.loads((Path(folder) / "gpu.json").read_text()), console.export_text()


def test_all_parts_run_all_checks_pass_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    # Tuning, one layer's attention, four ways of a prefill, none of another, and no attention of a longer prompt.
    code, result, output = interpret(_measure, str(tmp_path), "yy" + "yyyyy" + "ynnnn" + "n")
    assert [check for check in result["checks"] if not check["ok"]] == []
    assert code == 0
    assert len(result["checks"]) == 1 * 3 * 2 + 7 + 2
    assert len(list((tmp_path / "tuned").iterdir())) == len(result["tuned"]) == 1
    assert [row["way"] for row in result["prefill"]] == ["eager", "CAS+LSP 0.25", "LSP+GCI", "CAS 0.25"]
    kept = {row["way"]: row["kept"] for row in result["prefill"]}
    assert kept["CAS+LSP 0.25"] == kept["eager"] - 3 * 16
    assert any("segment_attention" not in note and "triton@" in note for note in result["prefill"][1]["notes"])
    (attention,) = result["attention"]
    assert attention["differs_from_flex"] < 1e-5
    assert "15 of 15 checks of numerics passed" in output
    for row in ("prefill, 2 layers, CAS+LSP 0.25", "attention, one layer", "attention, 2 layers"):
        assert row in output
    left = [f"prefill: {way}, 12 frames" for way in ("eager", "CAS+LSP 0.25", "LSP+GCI", "CAS 0.25")]
    assert result["left_out"][:4] == left
    assert result["left_out"][4].startswith("attention: 256 tokens")
    assert len(result["left_out"]) == 5
    for what in result["left_out"]:
        assert f"left out, because time was up: {what}" in output


def test_what_fails_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    code, result, output = interpret(_measure, str(tmp_path), "nnnnn", 72)  # 72 is no multiple of 16
    assert code == 1
    (failed,) = result["failed"]
    assert failed.startswith("checks: head size 72: KernelError: head size 72 is not a multiple of 16")
    assert "failed: checks: head size 72" in output
    assert len(result["checks"]) == 7 + 2
    assert len(result["left_out"]) == 5


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.startswith("There is no GPU here, so nothing was measured")


def test_the_full_plan_leaves_weights_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_prefill import QWEN_7B

    assert QWEN_7B.layers_that_fit(80 << 30, 2) == 28
    assert 5 < QWEN_7B.layers_that_fit(24 << 30, 2) < 28
    assert QWEN_7B.layers_that_fit(1 << 20, 2) == 1
