"""``segmo plan`` and ``segmo simulate`` as a user runs them."""

from __future__ import annotations

import json

import pytest
import typer
from PIL import Image
from transformers import Qwen2VLConfig
from typer.testing import CliRunner

from segmo.commands.inputs import model_shape, numbers
from segmo.commands.plan import plan
from segmo.commands.simulate import simulate
from segmo.errors import OptionError
from segmo.runtime.cost.device import DEVICES
from segmo.runtime.cost.shape import PRESETS
from segmo.runtime.partition.simulate import Video
from segmo.runtime.partition.simulate import simulate as predict

app = typer.Typer()
app.command()(plan)
app.command()(simulate)


def run(*args: str):
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "200"})


def test_plan_prints_ranks_time_and_reasons(tmp_path):
    picture = tmp_path / "plan.png"
    result = run("plan", "--device", "h100,a100", "--context", "64", "--encode", "--picture", str(picture))
    assert result.exit_code == 0, result.output
    for word in ("H100 SXM", "A100 SXM", "ms predicted", "critical path", "Imbalance", "datasheet"):
        assert word in result.output
    with Image.open(picture) as drawn:
        assert drawn.width > 500


def test_a_plan_that_does_not_fit_says_so():
    result = run("plan", "--device", "h100", "--model", "qwen2.5-vl-72b")
    assert result.exit_code != 0
    assert "would hold" in str(result.exception)


def test_devices_and_ranks_must_agree():
    assert run("plan", "--device", "h100,a100", "--ranks", "3").exit_code == 2


def test_simulate_draws_and_says_that_nothing_was_run(tmp_path):
    picture = tmp_path / "simulated.svg"
    result = run("simulate", "--ranks", "1,8", "--minutes", "1,2000", "--picture", str(picture))
    assert result.exit_code == 0, result.output
    assert "SIMULATED" in result.output
    said = " ".join(result.output.split())
    assert "none of these numbers of ranks holds it. Every rank holds" in said  # 2,000 minutes
    assert "embeddings 205.08" in said
    assert "SIMULATED, nothing was run" in picture.read_text() or picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("ranks", "hours", "rate", "limit"),
    [(1, 6, 1.0, "memory"), (16, 24, 1.0, "memory: embeddings"), (1, 24, 0.25, "memory"), (1, 0.1, 1.0, "computing")],
)
def test_it_is_said_whether_more_ranks_would_make_room(ranks, hours, rate, limit):
    shape, device, video = PRESETS["qwen2.5-vl-7b"], DEVICES["h100"], Video(frames_per_second=rate)
    (point,) = predict(shape, device, [ranks], [hours * 3600], video, "sharded")
    assert point.limit == limit
    assert point.fits == (limit == "computing")


def test_simulated_scaling_ends_somewhere():
    points = predict(PRESETS["qwen2.5-vl-7b"], DEVICES["h100"], [1, 8, 512], [600.0], Video(), "sharded")
    one, eight, many = points
    assert one.speedup == 1
    assert 4 < eight.speedup < 8
    assert many.efficiency < eight.efficiency
    assert many.limit != "computing"


def test_video_is_as_long_as_it_was_asked_for():
    work = Video(tokens_per_frame=100, frames_per_second=2, keep=0.5).workload(60)
    assert work.encoded == 120 * 100
    assert sum(work.segments) == pytest.approx(6000, abs=len(work.segments))
    assert sum(count > 0 for count in work.context) == 2


def test_numbers_are_read_or_refused():
    assert numbers("3, 4*2,5", "--x") == [3, 4, 4, 5]
    for wrong in ("", "a", "3*b", "-1", "1,,2"):
        with pytest.raises(OptionError, match="--x"):
            numbers(wrong, "--x")
    with pytest.raises(OptionError, match="neither a folder"):
        model_shape("no-such-model")


@pytest.mark.parametrize("name", ["[x].svg", "[bold]y.pdf"])
def test_brackets_in_names_are_no_markup(name, tmp_path):
    for command in (["plan"], ["simulate", "--minutes", "1", "--ranks", "1,2"]):
        result = run(*command, "--picture", str(tmp_path / name))
        assert result.exit_code == 0, result.output
        assert name in result.output.replace("\n", "")
    folder = tmp_path / "model[b]"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(Qwen2VLConfig().to_dict()))
    result = run(
        "simulate", "--minutes", "1", "--ranks", "1", "--model", str(folder), "--picture", str(tmp_path / "p.png")
    )
    assert result.exit_code == 0, result.output
    assert "model[b]" in result.output.replace("\n", "")


def test_more_ranks_than_can_be_planned_for_are_refused_at_once():
    result = run("plan", "--segments", "100,200", "--ranks", "100000")
    assert isinstance(result.exception, OptionError)
    assert "--ranks is 100000; it must be at most 4,096" in str(result.exception)


def test_an_unknown_device_is_named_with_one_stop():
    result = run("plan", "--device", "h10")
    assert "did you mean 'h100'? Known: a100" in str(result.exception)
