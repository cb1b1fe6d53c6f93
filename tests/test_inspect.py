"""`segmo inspect`: graphs of a model from its config alone, as a tree, as text and as a diff."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from models import build
from torch._dynamo import reset
from transformers import Qwen2VLVideoProcessor
from typer.testing import CliRunner

from segmo.commands.inspect import inspect
from segmo.compiler import backend
from segmo.demo.clips import clip_path
from segmo.errors import NotRewrittenError, OptionError, PipelineError
from segmo.families import FAMILIES
from segmo.inspection import prompts
from segmo.inspection.bisect import Step
from segmo.inspection.models import PIXELS, SIDE, load_config, shrink
from segmo.inspection.ranks import plan_for
from segmo.inspection.run import capture_subject, inspect_model, inspect_subject, subject, with_stop
from segmo.inspection.tree import bisection_table
from segmo.options import Options
from segmo.passes.pipeline import DEFAULT, build_pipeline
from segmo.report.report import Report
from segmo.report.setup import Setup
from segmo.report.text import diff, graph_at, node_name, readable
from segmo.sceneqa.model import MODEL_PATH

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def run(*args: str) -> str:
    app = typer.Typer()
    app.command()(inspect)
    done = CliRunner().invoke(app, [*args, "--frames", "8"])
    assert done.exit_code == 0, done.exception
    return str(done.output)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_shapes_the_graph_survives_shrinking(name: str) -> None:
    whole = load_config(name, layers=7)
    text, small = whole.get_text_config(), shrink(whole).get_text_config()
    assert small.num_hidden_layers == 7
    assert (
        text.num_attention_heads // text.num_key_value_heads == small.num_attention_heads // small.num_key_value_heads
    )
    assert small.hidden_size // small.num_attention_heads == text.hidden_size // text.num_attention_heads
    assert type(small) is type(text)
    assert text.vocab_size > 10_000  # the config itself is left as it was


def test_a_config_is_found_by_folder_class_and_type(tmp_path: Path) -> None:
    build("qwen3_vl").config.save_pretrained(tmp_path)
    assert load_config(str(tmp_path)).get_text_config().num_hidden_layers == 3
    for name in ("qwen3_vl", "Qwen3VLConfig", "Qwen3VLForConditionalGeneration"):
        assert load_config(name).model_type == "qwen3_vl"
    with pytest.raises(OptionError, match="known families: qwen2_vl"):
        load_config("bert")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="holds no config"):
        load_config(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_rewritten(name: str) -> None:
    report = inspect_model(name, {"keep": 0.5}, frames=8, layers=2)
    assert [graph.kind for graph in report.graphs] == ["prefill", "decode"]
    missed = {record.name: [miss.code for miss in record.misses] for record in report.graphs[0].passes if record.misses}
    # Qwen3-VL adds vision features again behind the last attention, when it is shrunk to as many layers as it adds to.
    deepstack = {"trim-last-layer": ["every-row"]} if name == "qwen3_vl" else {}
    idle = {"shard-segments": ["no-group"], "group-heads": ["no-copies"], "outline-layers": ["as-it-is"]}
    assert missed == {**idle, **deepstack}


@pytest.mark.parametrize("name", ["qwen3_5", "glm4v_moe"])
def test_relatives_are_rewritten_from_their_name_alone(name: str) -> None:
    report = capture_subject(subject(name, frames=8), {"keep": 0.25})
    passes = {record.name: record.matches for record in report.graphs[0].passes}
    assert passes["select-tokens"] == 1
    assert passes["segment-attention"] == (0 if name == "qwen3_5" else 4)  # it has recurrent layers
    assert any("128 video tokens in the traced call, 32 kept" in str(note) for note in report.graphs[0].notes)


def test_the_tree_shows_ops_and_reasons() -> None:
    out = run("qwen2_vl", "--layers", "2", "--disable", "segment-attention")
    assert "graph 0: prefill, rewritten" in out
    assert "segmo.select_tokens.default +1" in re.sub(r"\s*\n[│\s]*", " ", out)  # long lines are broken
    assert "not applied (no-segments)" in out
    assert "to change that: see why segment-attention did not apply" in out
    assert "graph 1: decode, rewritten" in out
    assert "group-heads (exact): 2 matches" in out


def test_json_holds_the_report_graph_and_diff() -> None:
    found = json.loads(
        run("qwen2_vl", "--layers", "2", "--json", "--graph", "before", "--diff", "segment-attention", "--stop-after",
            "segment-attention")
    )  # fmt: skip
    assert [record["name"] for record in found["graphs"][0]["passes"]] == ["select-tokens", "segment-attention"]
    assert any("scaled_dot_product_attention" in line for line in found["graph"])
    removed = [line for line in found["diff"] if line.startswith("-") and "scaled_dot_product" in line]
    added = [line for line in found["diff"] if line.startswith("+") and "segmo.segment_attention" in line]
    assert len(removed) == len(added) == 2


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fills with an entry for each call of a compiled graph."""
    calls: list[Any] = []
    lower = backend.lower

    def lower_counted(*args: Any) -> Any:
        lowered = lower(*args)
        return replace(lowered, run=lambda *inputs: (calls.append(lowered), lowered.run(*inputs))[1])

    monkeypatch.setattr(backend, "lower", lower_counted)
    return calls


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision"])
def test_a_graph_that_is_only_looked_at_never_runs(name: str, ran: list[Any]) -> None:
    given = subject(name, frames=8, layers=1)
    seen = capture_subject(given, {"keep": 0.5}, stop_after="segment-attention")
    assert ran == []
    assert seen.prefill is None
    assert [graph.kind for graph in seen.graphs] == ["prefill"]
    text = graph_at(seen.graphs[0], "after")
    assert "segmo.segment_attention.default" in text
    reset()
    report = inspect_subject(given, {"keep": 0.5}, stop_after="segment-attention")
    assert readable(graph_at(report.graphs[0], "after")) == readable(text)
    assert len(ran) == 2  # prefill and decode


def test_the_command_runs_a_model_only_for_what_the_run_tells(ran: list[Any]) -> None:
    run("qwen2_vl", "--layers", "1", "--graph", "after")
    assert "+" in run("qwen2_vl", "--layers", "1", "--diff", "select-tokens")
    assert ran == []
    run("qwen2_vl", "--layers", "1", "--graph", "after", "--number", "1")  # the decode graph comes after a prefill
    assert len(ran) == 2


def test_an_error_in_a_graph_that_is_only_looked_at_is_the_users_to_see() -> None:
    with pytest.raises(NotRewrittenError, match="layer=3, but"):
        capture_subject(subject("qwen2_vl", frames=8, layers=1), {"scorer": "attention", "strict": True})


def test_a_diff_names_only_nodes_that_changed() -> None:
    graph = inspect_model("qwen2_vl", {"keep": 1.0, "segments": 2}, frames=8, layers=2).graphs[0]
    assert diff(graph, "select-tokens") == []
    before, after = readable(graph_at(graph, "before")), readable(graph_at(graph, "segment-attention"))
    names = {node_name(line) for line in before if node_name(line)}
    kept = {node_name(line) for line in after} & names
    assert len(names - kept) < 0.1 * len(names)  # nodes that no pass touched keep their names
    changed = [line for line in diff(graph, "segment-attention", context=0) if line[0] in "+-" and "after" not in line]
    assert not any("q_proj" in node_name(line[1:]) for line in changed)
    with pytest.raises(OptionError, match="passes that ran: select-tokens"):
        diff(graph, "select-token")


def test_stopping_disables_what_follows() -> None:
    later = DEFAULT.split(",segment-attention,")[1].split(",")
    assert with_stop({}, "segment-attention")["disable"] == later
    assert with_stop({"disable": "select-tokens"}, later[-1])["disable"] == ["select-tokens"]
    place = "segmo.passes.select_tokens:SelectTokens"
    for name in (place, "select-tokens"):  # by its place, or as it calls itself
        options = with_stop({"pipeline": f"{place},trim-last-layer"}, name)
        assert [each.name for each in build_pipeline(Options.parse(options))] == ["select-tokens"]
    with pytest.raises(OptionError, match="the pipeline has no such pass"):
        with_stop({"pipeline": "select-tokens"}, "lower-kernels")
    with pytest.raises(PipelineError, match="did you mean"):
        with_stop({"pipeline": "select-token"}, None)


def test_patches_are_cut_as_the_processor_cuts_them() -> None:
    side = SIDE * PIXELS
    frames = torch.randint(0, 255, (4, 3, side, side), dtype=torch.uint8)
    processor = Qwen2VLVideoProcessor(patch_size=PIXELS, do_resize=False, do_sample_frames=False)
    made = processor(videos=[frames], return_tensors="pt")
    assert made["video_grid_thw"].tolist() == [[2, SIDE, SIDE]]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    ours = prompts._patches((frames / 255 - mean) / std, 2)
    torch.testing.assert_close(made["pixel_values_videos"], ours, atol=1e-5, rtol=1e-5)


def test_a_real_video_has_its_scenes_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "seen" / "page.html"
    clip = ["--video", str(clip_path("bikes")), "--fps", "5", "--question", "<b>Where?</b>"]
    out = run("qwen2_vl", "--layers", "1", *clip, "--html", str(page), "--ranks", "3", "--device", "h100")
    assert f"page: {page}" in out
    text = page.read_text()
    assert "bikes.mp4" in text
    assert "&lt;b&gt;Where?&lt;/b&gt;" in text
    starts = [int(start) for start in re.findall(r'data-label="frames"><div>(\d+)–', text)]
    # The clip is cut at frames 76, 137 and 187 of 25 a second; a frame of the model is two of five a second.
    for cut in (76, 137, 187):
        assert min(abs(start - cut / 10) for start in starts) <= 1
    assert text.count('alt="frame ') == 25
    assert text.count('class="lane"') == 4


def test_bisection_names_the_pass_that_changes_the_result() -> None:
    passes = ["--pipeline", "select-tokens,segment-attention,lower-kernels"]
    found = json.loads(
        run("qwen2_vl", "--layers", "2", "--bisect", "--json", "--keep", "1", "--segments", "4", *passes)
    )
    assert [step["name"] for step in found] == ["(capture)", "select-tokens", "segment-attention"]
    assert [step["within"] for step in found] == [True, True, False]
    assert found[1]["matches"] == 0
    assert found[2]["difference"] > 1e-3
    steps = [Step(**step) for step in found]
    assert bisection_table(steps, 1e-3).caption == "segment-attention (approximate) is the first to leave it"
    assert bisection_table(steps[:2], 1e-3).caption == "no pass leaves it"


def test_what_cannot_be_inspected_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no such file"):
        subject("qwen2_vl", video=tmp_path / "none.mp4")
    with pytest.raises(OptionError, match="--weights needs a model's folder"):
        subject("qwen2_vl", weights=True)
    with pytest.raises(OptionError, match="--ranks needs a prefill with segments"):
        plan_for(Report(Options(), Setup((), True)), None, 2, "h100")


def test_a_checkpoint_is_inspected_with_its_weights() -> None:
    given = subject(str(MODEL_PATH), video=clip_path("bikes"), fps=0.6, question="Which digit is red?", weights=True)
    report = inspect_subject(given, {"keep": 0.5})
    assert report.prefill is not None
    assert report.prefill.shown is not None
    assert report.prefill.shown.question == "Which digit is red?"
    tokens = report.prefill.tokens()
    assert tokens["kept"] == tokens["video"] // 2 > 0
