"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.fx import Graph, GraphModule

from segmo.families import FAMILIES
from segmo.options import Options
from segmo.passes.analyse import Facts
from segmo.passes.runner import run_pipeline

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def example(name: str) -> ModuleType:
    """An example as a module that can be found by its name, as a script is under ``__main__``."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_example_is_here_or_has_a_test_of_its_own() -> None:
    tested = {"generate", "families", "custom_scorer", "custom_pass", "inspecting", "two_ranks", "memory"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.slow
def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    example("generate").main(["--keep", "0.5"])
    assert "of them kept (50.0%)" in capsys.readouterr().out


def test_each_family_generates() -> None:
    kept = example("families").main(frames=8, layers=1, tokens=1)
    assert list(kept) == list(FAMILIES)
    assert all(few == many // 4 for many, few in kept.values())


def test_a_custom_scorer_moves_the_budget() -> None:
    scenes = example("custom_scorer").main(layers=1)
    by_budget = sorted(scenes, key=lambda scene: -scene["kept"])
    assert by_budget[0]["start_frame"] <= 8 < by_budget[0]["end_frame"]  # shot 2 is frames 8 to 11 of the model
    assert by_budget[0]["relevance"] == max(scene["relevance"] for scene in scenes)


def test_inspecting_writes_a_page_for_each_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = example("inspecting").main(tmp_path, layers=1)
    assert [report.prefill is not None for report in reports] == [True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report-0.html", "report-1.html"]
    out = capsys.readouterr().out
    assert "why not select-tokens: the prompt has no video (" in out
    assert "modeling_qwen2_5_vl.py:" in out


def test_a_custom_pass_runs_in_the_pipeline_and_reports() -> None:
    record = example("custom_pass").main(layers=2, most=1).graphs[0].passes[-1]
    assert (record.name, record.tier, record.matches) == ("drop-contiguous", "exact", 1)  # there are two
    assert record.ops_before[".contiguous"] - record.ops_after[".contiguous"] == 1


def test_the_custom_pass_changes_no_number_and_touches_nothing_strided() -> None:
    drop = example("custom_pass").DropContiguous()
    graph = Graph()
    x = graph.placeholder("x")
    whole = graph.call_method("contiguous", (x,))
    flat = graph.call_method("reshape", (whole, -1))
    again = graph.call_method("contiguous", (flat,))
    strided = graph.call_method("contiguous", (graph.call_method("t", (x,)),))
    graph.output((again, strided))
    gm = GraphModule(torch.nn.Module(), graph)
    x_23 = torch.randn(3, 2).t()
    before = gm(x_23)
    result = run_pipeline(gm, Facts("other"), Options(), [drop])
    for one, other in zip(before, gm(x_23), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    assert result.records[0].ops_before == {".contiguous": 3, ".reshape": 1, ".t": 1}
    assert result.records[0].ops_after == {".contiguous": 2, ".reshape": 1, ".t": 1}
    again_record = run_pipeline(gm, Facts("other"), Options(), [drop]).records[0]
    assert again_record.matches == 0
    assert again_record.misses[0].reason == "no reshape is followed by contiguous()"


def test_one_memory_answers_several_questions(capsys: pytest.CaptureFixture[str]) -> None:
    found = example("memory").main(questions=3)
    assert sum(answer == right for _, answer, right in found) >= 2
    assert "from disk: {" in capsys.readouterr().out
