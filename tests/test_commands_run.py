"""``segmo run``: what it prints, writes and refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ask_models import write_model
from image_text_models import save_image_text_model
from typer.testing import CliRunner
from video_files import noise_shots, write_file

import segmo.commands.run
import segmo.commands.warm
from segmo.ask.ask import Asker
from segmo.cli import app
from segmo.demo.clips import clip_path
from segmo.errors import OptionError, PipelineError
from segmo.options import Options
from segmo.video.source import VideoError


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["run", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("command", [segmo.commands.run.run, segmo.commands.warm.warm])
def test_an_option_not_given_is_what_the_package_takes(command: Callable[..., None]) -> None:
    own = {"frames", "disable"}  # a number of them here, a share there; None for nothing
    known = {option.name: option.default for option in dataclasses.fields(Options)}
    given = inspect.signature(command).parameters
    assert {"keep", "segments", "context", "tails", "scorer", "layer", "balance", "lowering"} < given.keys()
    assert {n: p.default for n, p in given.items() if n in known.keys() - own} == {
        name: known[name] for name in given if name in known.keys() - own
    }


@pytest.mark.usefixtures("fresh_dynamo")
def test_one_question(tmp_path: Path) -> None:
    video, question = str(clip_path("bikes")), "which digit in red bananas"
    common = (video, question, "--max-new-tokens", "1", "--keep", "0.5", "--cache-folder", str(tmp_path / "cache"))
    first = run(*common, "--compare", "--report", str(tmp_path / "report"))
    assert "a million parameters" in first
    assert "does not know the word 'bananas'" in first
    for text in ("answer:", "full attention:", "10.00 s, 6 scenes, 20 frames", "60 of the video, 30 of them kept"):
        assert text in first
    for stage in ("decode", "scenes", "encode", "prefill"):
        assert f"{stage} " in first
    report = json.loads((tmp_path / "report" / "segmo-report.json").read_text())
    assert {"decode", "scenes", "encode", "prefill", "generate"} <= {event["stage"] for event in report["timeline"]}
    assert report["answers"][0]["tokens"] == {"prompt": 69, "video": 60, "kept": 30}
    assert report["answers"][0]["cuts"] == [1.2, 3.04, 5.48, 7.48, 9.68]
    page = (tmp_path / "report" / "segmo-report.html").read_text()
    assert "bikes.mp4" in page
    assert question in page
    assert "bright: kept" in page  # there are pictures, and what was dropped lies dimmed on them
    assert len(set(re.findall(r'alt="frame \d+" decoding="async" src="(data:image/jpeg;base64,[^"]+)"', page))) == 10
    again = run(*common, "--report", str(tmp_path / "again"))  # the cache holds no pictures
    assert "from the cache: features of the video" in again
    assert (tmp_path / "again" / "segmo-report.html").read_text().count("data:image/jpeg") == 10


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("kind", ["own", "clip"])
def test_frames_are_chosen_before_they_are_encoded(kind: str, tmp_path: Path) -> None:
    video, question = str(clip_path("bikes")), "which digit in red dots"
    more = () if kind == "own" else ("--relevance", str(save_image_text_model("clip", tmp_path / "clip")))
    found = run(
        video,
        question,
        "--max-new-tokens",
        "1",
        "--frames",
        "4",
        "--keep",
        "0.5",
        "--no-cache",
        "--report",
        str(tmp_path / "report"),
        *more,
    )
    assert "24 of the video, 12 of them kept" in found  # 4 frames of 6 tokens
    assert "choose " in found
    assert (tmp_path / "report" / "segmo-report.html").read_text().count("data:image/jpeg") == 4


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_prompt_too_long_for_the_model_shows_fewer_frames_and_says_so(tmp_path: Path) -> None:
    film = write_file(tmp_path / "film.mp4", noise_shots([30, 45, 20, 30], 48, 32))
    folder = write_model("llava_onevision", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 120
    (folder / "config.json").write_text(json.dumps(config))
    common = (str(film), "What happens?", "--model", str(folder), "--max-new-tokens", "1", "--fps", "4", "--no-cache")
    with pytest.warns(UserWarning, match=r"[\d,]+ positions, and the model is made for 120 .*frames fit") as said:
        found = " ".join(run(*common, "--keep", "0.5").split())
    assert not [each for each in said if "this prompt needs" in str(each.message)]  # the fewer frames do fit
    note = re.search(r"note: (\d+) frames need (\d+) positions, .* made for 120 .*; (\d+) of the \1 frames fit", found)
    prompt = re.search(r"tokens: (\d+) in the prompt, (\d+) of the video", found)
    assert note is not None
    assert prompt is not None
    assert int(prompt[1]) <= 120 < int(note[2])
    assert 0 < int(note[3]) < int(note[1])
    assert int(prompt[2]) == 36 * int(note[3]) // 4 + 1  # a frame's 6 x 6 patches, pooled; one token ends the video


def test_what_relevance_needs_is_said() -> None:
    with pytest.raises(OptionError, match="say how many"):
        run("x.mp4", "which", "--relevance", "clip")
    with pytest.raises(OptionError, match="frames is 0"):
        run("x.mp4", "which", "--frames", "0")


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_batch_with_a_bad_file(tmp_path: Path) -> None:
    write_file(tmp_path / "good.mp4", noise_shots([20, 20], 48, 32))
    (tmp_path / "bad.mp4").write_text("not a video\n" * 100)
    lines = [{"video": name, "question": "which digit in red dots"} for name in ("bad.mp4", "good.mp4")]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = ("--batch", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--no-cache")
    done = CliRunner().invoke(app, ["run", *common, "--max-new-tokens", "1"], catch_exceptions=False)
    assert done.exit_code == 1
    assert "0 answered before, 1 now, 1 failed" in done.output.replace("\n", "")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["error" in record for record in found] == [True, False]


def test_a_missing_file_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(VideoError, match=r"there is no file none\.mp4"):
        run("none.mp4", "which digit in red dots", "--model", "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.mp4", " "), "the question is empty"),
        (("a.mp4",), "give a video file and a question"),
        (("a.mp4", "x", "--batch", "b.jsonl"), "give no others"),
        (("a.mp4", "x", "--out", "answer.txt"), "where a batch's answers go"),
        (("a.mp4", "x", "--disable", "select-token"), "did you mean 'select-tokens'"),
        (("a.mp4", "x", "--pipeline", "select-token"), "did you mean 'select-tokens'"),
        (("a.mp4", "x", "--keep", "0"), "option 'keep'"),
        (("a.mp4", "x", "--scorer", "external"), "takes scores from a program"),
        (("a.mp4", "x", "--max-frames", "0"), "max_frames is 0"),
        (("a.mp4", "x", "--fps", "0"), "more than 0 frames per second"),
        (("a.mp4", "x", "--fps", "nan"), "more than 0 frames per second"),
        (("a.mp4", "x", "--max-new-tokens", "0"), "new_tokens is 0"),
        (("a.mp4", "x", "--dtype", "int8"), "unknown dtype"),
        ((str(clip_path("bikes")), "x", "--model", "nowhere"), "no config.json"),
        (("a.mp4", "x", "--adaptive-threshold", "0"), "thresholds of scenes"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises((OptionError, PipelineError), match=message):
        CliRunner().invoke(app, ["run", *arguments, "--no-cache"], catch_exceptions=False)


@pytest.mark.usefixtures("fresh_dynamo")
def test_brackets_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a question's words, and of an answer."""
    asked = Asker.ask

    def ask(self: Asker, *request: Any) -> Any:
        return dataclasses.replace(asked(self, *request), text="[/INST] the sign says [stop]")

    monkeypatch.setattr(Asker, "ask", ask)
    printed = run(str(clip_path("bikes")), "which [/b] digit", "--max-new-tokens", "1", "--no-cache")
    assert "does not know the word '[/b]'" in printed
    assert "answer: [/INST] the sign says [stop]" in printed
