"""The report: stable, JSON-able, in words, for notebooks, in torch's logs and traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
from models import build, prompt

import segmo
from segmo.errors import OptionError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_the_report_has_a_stable_form(tmp_path: Path) -> None:
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5, segments=2, report=tmp_path / "made")
    model.generate(**prompt("qwen2_vl"), max_new_tokens=2, do_sample=False)
    report = segmo.last_report().to_dict()
    assert json.loads((tmp_path / "made" / "segmo-report.json").read_text())["tokens"] == report["tokens"]
    names = ["model", "options", "setup", "graphs", "frames", "tokens", "question", "scenes", "segments", "timeline"]
    assert list(report) == [*names, "answers"]
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


def test_a_folder_for_reports_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be made a folder"):
        segmo.compile(build("qwen2_vl"), report=tmp_path / "file")
    with pytest.raises(OptionError, match="cannot be made a folder"):
        torch.compile(build("qwen2_vl"), backend="segmo", options={"report": str(tmp_path / "file")})


def test_an_answer_is_not_lost_with_its_report(tmp_path: Path) -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.5)
    expected = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    segmo.compile(model, keep=0.5, report=tmp_path / "made")
    (tmp_path / "made" / "segmo-report.json").mkdir()  # in the way, for root too
    with pytest.warns(UserWarning, match="could not write its report into .*made"):
        found = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(found, expected)


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


def test_asking_before_anything_was_compiled_says_so() -> None:
    code = "import segmo; segmo.last_report()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "compiling happens when the model is called first" in done.stderr


def test_reports_are_collected_one_for_each_prefill() -> None:
    model, plain = build("qwen2_vl"), build("qwen2_vl")
    segmo.compile(model, keep=0.5)
    segmo.compile(plain, keep=1.0, segments=1)
    with segmo.collect_reports() as outer:
        with segmo.collect_reports() as inner:
            model.generate(**prompt("qwen2_vl"), max_new_tokens=1, do_sample=False)
        model.generate(**prompt("qwen2_vl", 9), max_new_tokens=2, do_sample=False)
        plain.generate(**prompt("qwen2_vl"), max_new_tokens=1, do_sample=False)
        assert [report.prefill.tokens()["video"] for report in outer] == [24, 36]
    assert [report.prefill.tokens()["video"] for report in inner] == [24]
    assert [report.prefill is None for report in outer] == [False, False, True]  # the last was not rewritten
    assert outer[2].graphs[0].passes[0].misses[0].code == "keep-all"
    assert [graph.kind for graph in outer[0].graphs] == ["prefill", "decode"]
    model.generate(**prompt("qwen2_vl"), max_new_tokens=1, do_sample=False)
    assert len(outer) == 3  # the block is over


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5)
    with segmo.show_prompt(question='"><script>alert(1)</script>'):
        model.generate(**prompt("qwen2_vl"), max_new_tokens=1, do_sample=False)
    shown = segmo.last_report()._repr_html_()
    assert shown.startswith('<iframe sandbox="allow-scripts" srcdoc="&lt;!DOCTYPE html&gt;')
    assert shown.count("<") == 2  # the frame's own; the page inside is all escaped
    inside = unescape(shown.split('srcdoc="')[1].split('" style="')[0])
    assert inside == segmo.last_report().to_html()


_TRACED = """
import torch
from models import build, prompt
model = build("qwen2_vl")
model.compile(backend="segmo", dynamic=True, options={"keep": 0.5})
with torch.no_grad():
    model.generate(**prompt("qwen2_vl"), max_new_tokens=2, do_sample=False)
"""


@pytest.mark.slow
def test_torch_logs_and_traces_hold_what_the_passes_did(tmp_path: Path) -> None:
    torch_says = {"TORCH_LOGS": "+segmo", "TORCH_TRACE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _TRACED],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **torch_says},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "select-tokens: 1 matches, 0 misses" in done.stderr
    assert "select-tokens: not applied (decode): this graph decodes with a filled KV cache at " in done.stderr
    (trace,) = tmp_path.glob("*.log")
    payloads = _artifacts(trace.read_text())
    reports = [json.loads(text) for name, text in payloads if name == "segmo_report"]
    assert [report["kind"] for report in reports] == ["prefill", "decode"]
    assert reports[0]["passes"][0]["matches"] == 1
    after = dict(payloads)["segmo_after_segment-attention"]
    assert after.count("torch.ops.segmo.segment_attention.default(") == 3
    _check_with_tlparse(trace, tmp_path / "shown")


def _artifacts(trace: str) -> list[tuple[str, str]]:
    """Name and payload of each artifact of a trace: a line of JSON, then the payload, indented by a tab."""
    found: list[tuple[str, list[str]]] = []
    for line in trace.splitlines():
        if line.startswith("\t"):
            if found:
                found[-1][1].append(line[1:])
        else:
            entry = json.loads(line[line.index("{") :])
            found.append((entry.get("artifact", {}).get("name", ""), []))
    return [(name, "\n".join(lines)) for name, lines in found if name.startswith("segmo")]


def _check_with_tlparse(trace: Path, out: Path) -> None:
    """tlparse itself makes a page of each artifact."""
    tool = Path(sys.executable).with_name("tlparse")
    done = subprocess.run([tool, trace, "-o", out, "--no-browser"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [path.name for path in out.rglob("segmo_*")]
    assert sum(name.startswith("segmo_report") for name in names) == 2
    assert any(name.startswith("segmo_after_select-tokens") for name in names)
