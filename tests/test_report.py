"""The report: stable, JSON-able, and in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from models import build, prompt

import segmo

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_the_report_has_a_stable_form(tmp_path: Path) -> None:
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5, segments=2, report=tmp_path / "made")
    model.generate(**prompt("qwen2_vl"), max_new_tokens=2, do_sample=False)
    report = segmo.last_report().to_dict()
    assert json.loads((tmp_path / "made" / "segmo-report.json").read_text())["tokens"] == report["tokens"]
    names = ["model", "options", "setup", "graphs", "frames", "tokens", "scenes", "segments", "timeline", "answers"]
    assert list(report) == names
    prefill, decode = report["graphs"]
    assert (prefill["kind"], decode["kind"]) == ("prefill", "decode")
    assert list(prefill["passes"][0]) == ["name", "tier", "matches", "misses", "seconds", "ops"]
    assert list(decode["passes"][0]["misses"][0]) == ["code", "reason", "remedy", "node", "source"]
    assert report["tokens"] == {"prompt": 37, "video": 24, "kept": 12}
    assert sum(scene["tokens"] for scene in report["scenes"]) == 24
    assert sum(scene["kept"] for scene in report["scenes"]) == 12
    assert report["scenes"][0]["start_frame"] == 0
    assert report["scenes"][-1]["end_frame"] == 6
    assert sum(segment["tokens"] for segment in report["segments"]) == 12
    assert sum(segment["context"] for segment in report["segments"]) > 0


def test_the_report_in_words() -> None:
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5, segments=2)
    model.generate(**prompt("qwen2_vl"), max_new_tokens=2, do_sample=False)
    text = str(segmo.last_report())
    assert "select-tokens (approximate): 1 matches" in text
    assert "37 tokens, 24 of video, 12 of them kept (50.0%)" in text
    assert "not applied" in text.split("graph 1: decode")[1]


def test_a_model_compiled_with_other_options_starts_a_new_report() -> None:
    model = build("qwen2_vl")
    for keep in (0.5, 0.25):
        segmo.compile(model, keep=keep)
        model.generate(**prompt("qwen2_vl"), max_new_tokens=1, do_sample=False)
        report = segmo.last_report().to_dict()
        assert [graph["kind"] for graph in report["graphs"]] == ["prefill"]
        assert report["options"]["keep"] == keep


def test_importing_segmo_does_not_import_torch() -> None:
    code = (
        "import sys, segmo; print(sorted({'torch', 'transformers', 'numpy', 'networkx', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_asking_before_anything_was_compiled_says_so() -> None:
    code = "import segmo; segmo.last_report()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "compiling happens when the model is called first" in done.stderr
