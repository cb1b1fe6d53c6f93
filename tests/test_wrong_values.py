"""Values that cannot be, where users hand them in: an error that names the value, and nothing begun."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from video_files import noise_shots, write_file

import segmo
from segmo.ask.checkpoint import load
from segmo.checked import check_utf8, device_named
from segmo.cli import app
from segmo.errors import CacheError, OptionError, PromptError, SegMoError
from segmo.memory.camera import Camera
from segmo.memory.intake import as_frames
from segmo.memory.store import writing
from segmo.sceneqa.model import MODEL_PATH
from segmo.video import read
from segmo.video.source import VideoError

NAN = float("nan")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("film") / "film.mp4", noise_shots([10, 10], 48, 32))


@pytest.mark.parametrize(
    "given",
    [
        {"fps": "2"},
        {"fps": None},
        {"fps": True},
        {"fps": NAN},
        {"size": (0, 0)},
        {"size": "48"},
        {"size": (4.5, 3)},
        {"size": 48},
        {"max_pixels": -5},
        {"max_pixels": 1.5},
        {"max_frames": 1.5},
        {"max_frames": NAN},
        {"max_frames": 0},
        {"start": "1"},
        {"start": NAN},
        {"start": float("inf")},
        {"end": NAN},
        {"scenes": 5},
        {"workers": 0},
        {"workers": "all"},
    ],
    ids=str,
)
def test_how_a_video_is_read(film: Path, given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"fps|frames per second|" + next(iter(given))):
        read(film, **given)


def test_numbers_of_numpy_are_numbers(film: Path) -> None:
    clip = read(film, np.float32(2), (np.int64(48), np.int64(32)), max_frames=np.int32(1))
    assert clip.frames.shape == (1, 32, 48, 3)


@pytest.mark.parametrize("name", ["x" * 300, "film\0.mp4"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(VideoError, match=r"no name of a file|no file film"):
        read(name)
    with pytest.raises(CacheError, match="cannot be written"), writing(Path(name)):
        pass


@pytest.mark.parametrize("scores", ["x", None, [1j], [[1, 2], [3]], {}], ids=repr)
def test_external_scores(scores: Any) -> None:
    with pytest.raises(PromptError, match="external scores"), segmo.external_scores(scores):
        pass


@pytest.mark.parametrize(
    "frames",
    [[], "abc", [None], [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)], torch.zeros(1).bfloat16()],
    ids=["none", "text", "no picture", "ragged", "bfloat16"],
)
def test_frames_that_a_report_shows(frames: Any) -> None:
    with pytest.raises(OptionError, match="frames of a prompt"), segmo.show_prompt(frames):
        pass


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 8, 8, 3).bfloat16(),
        torch.zeros(1, 8, 8, 3, device="meta"),
        torch.zeros(1, 8, 8, 3, requires_grad=True),
        [np.zeros((2, 2, 3)), np.zeros((2, 3, 3))],
    ],
    ids=["bfloat16", "meta", "requires_grad", "ragged"],
)
def test_frames_that_are_watched(frames: Any) -> None:
    with pytest.raises(PromptError, match="uint8"):
        as_frames(frames)


def test_pairs_of_a_camera() -> None:
    camera = Camera([(True, np.zeros((8, 8, 3), np.uint8))], 4, 8, True)  # type: ignore[list-item]  # as cv2 has them
    with pytest.raises(PromptError, match="frame 1 of the camera is a tuple"):
        camera.take()


@pytest.mark.parametrize("model", [None, "qwen"])
def test_no_model_before_a_camera(model: Any) -> None:
    with pytest.raises(OptionError, match="model family"):
        next(segmo.live(model, None, iter([]), question="What?"))


@pytest.mark.parametrize("name", ["nope", "meta", "cpu:x"])
def test_devices(name: str) -> None:
    with pytest.raises(OptionError, match="device"):
        device_named(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(OptionError, match=r"no device 'cuda:1' here"):
        device_named("cuda:1")


@pytest.mark.parametrize(
    "arguments",
    [
        "run VIDEO q --device nope",
        "run VIDEO q --cache-gib nan",
        "run VIDEO q --cache-gib inf",
        "run VIDEO q --cache-gib 1e300",
        "run VIDEO q --cache-folder FILE",
        "run VIDEO q --report FILE",
        "run VIDEO q --segments ²",
        "run VIDEO q --workers 0",
        "run VIDEO q --max-new-tokens 0",
        "watch VIDEO --device nope",
        "calibrate --device nope",
        "calibrate --threads -1",
        "frames VIDEO --start inf",
        "eval --videos 0",
        "eval --out FILE",
        "demo --out FILE",
    ],
)
def test_commands(film: Path, tmp_path: Path, arguments: str) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"VIDEO": str(film), "FILE": str(tmp_path / "file")}
    done = CliRunner().invoke(app, [places.get(word, word) for word in arguments.split(" ")])
    assert isinstance(done.exception, SegMoError), done.exception
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("plan --device h100 --sinks -5", "sinks is -5"),
        ("plan --device h100 --keep -1 --encode", "0 < keep <= 1"),
        ("plan --device h100 --keep nan", "0 < keep <= 1"),
        ("plan --device h100 --encode --tokens-per-frame 0", "at least one token"),
        ("plan --device h100 --segments 99999999999999999999", "out of range"),
        ("plan --device h100 --segments 300*999999999", "more than"),
        ("plan --ranks -1", "--ranks is -1"),
        ("plan --device h100 --method foo", r"unknown method 'foo'\. Known"),
        ("plan --device h100 --picture pic", r"\.png"),
        ("plan --device h100 --model FOLDER", "no config that transformers can read"),
        ("plan --device cpu --model qwen2.5-vl-7b", "however many ranks"),
        ("simulate --minutes 1 --ranks 0", "out of range"),
        ("simulate --minutes 99999999999", "out of range"),
        ("simulate --minutes 1 --cache foo", "unknown cache"),
        ("simulate --keep 5", "0 < keep <= 1"),
        ("simulate --fps inf", "more than 0 frames per second"),
        ("simulate --tokens-per-frame -4", "at least one token"),
        ("kernels --target foo --list", "no data sheet"),
        ("kernels --predict --kernel nosuch", "--kernel"),
        ("kernels --predict --head-size 7", "64, 80, 96, 128, 256"),
        ("kernels --predict --dtype foo", "bf16, fp16, fp32"),
        ("kernels --source --json", "--json"),
        ("inspect qwen2_vl --graph before --target foo", "--html"),
        ("inspect qwen2_vl --html FOLDER", "is a folder"),
        ("inspect qwen2_vl --html FOLDER/page.html --target sm_12", "unknown target 'sm_12'"),
        ("inspect qwen2_vl --bisect --diff select-tokens", "--bisect"),
        ("inspect qwen2_vl --bisect --tolerance nan", "--tolerance"),
        ("run VIDEO which\udcff", "no UTF-8 text"),
    ],
)
def test_commands_that_compute_nothing_of_it(film: Path, tmp_path: Path, arguments: str, words: str) -> None:
    (tmp_path / "config.json").write_text("{")
    done = CliRunner().invoke(
        app, [word.replace("FOLDER", str(tmp_path)).replace("VIDEO", str(film)) for word in arguments.split(" ")]
    )
    assert isinstance(done.exception, SegMoError), done.exception
    assert re.search(words, str(done.exception))


def test_one_rank_is_simulated(tmp_path: Path) -> None:
    """It receives nothing from others, which has no place on a logarithmic scale."""
    picture = tmp_path / "one.png"
    done = CliRunner().invoke(app, ["simulate", "--ranks", "1", "--minutes", "1", "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    assert picture.stat().st_size > 0


def test_a_chat_goes_on_behind_what_cannot_be_asked() -> None:
    with pytest.raises(PromptError, match="no UTF-8 text"):
        check_utf8("the question", "which \udcff")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_the_model_that_ships_takes_a_dtype(kind: torch.dtype) -> None:
    assert load(None, str(kind).removeprefix("torch.")).model.dtype == kind


def test_the_model_that_ships_is_the_same_by_its_folder() -> None:
    named, own = load(MODEL_PATH), load(None)
    assert (named.fps, named.size, named.note, named.fingerprint) == (own.fps, own.size, own.note, own.fingerprint)


def test_a_size_that_a_processor_cannot_take(tmp_path: Path) -> None:
    """A copy of the model that ships resizes nothing, and its patches do not fit."""
    folder, film = tmp_path / "model", write_file(tmp_path / "wide.mp4", noise_shots([4], 90, 52))
    shutil.copytree(MODEL_PATH, folder)
    done = CliRunner().invoke(app, ["run", str(film), "which digit", "--model", str(folder), "--no-cache"])
    assert isinstance(done.exception, VideoError), done.exception
    assert re.search(r"refuses \d+ x \d+ pixels", str(done.exception))
