"""``segmo frames``: what it prints is what is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from video_files import noise_shots, write_file

from segmo.cli import app
from segmo.errors import OptionError
from segmo.video import read
from segmo.video.source import VideoError


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["frames", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds in three shots; its pixels are twice as wide as high."""

    def mark(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    return write_file(tmp_path_factory.mktemp("film") / "film.mp4", noise_shots([25] * 3), mark=mark)


def test_one_object_with_all_that_was_read(film: Path) -> None:
    found = json.loads(run(str(film), "--json"))
    assert (found["width"], found["height"]) == (128, 48)
    assert (found["stored_width"], found["stored_height"]) == (64, 48)
    assert found["times"] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert found["cuts"] == [1.0, 2.0]
    assert found["notes"] == []
    assert (found["duration"], found["file_frames"], found["frames"], found["fps"]) == (3.0, 75, 6, 2.0)
    assert json.loads(run(str(film), "--json", "--fps", "1", "--start", "1"))["times"] == [1.0, 2.0]
    assert json.loads(run(film.as_uri(), "--json", "--max-frames", "2"))["times"] == [0.0, 1.5]


def test_a_sheet_shows_the_frames(film: Path, tmp_path: Path) -> None:
    text = run(str(film), "--sheet", str(tmp_path / "new" / "sheet.png"), "--fps", "4")
    assert "12 frames sampled at 4 a second: 0.00 0.25 0.50" in text
    assert "shown at 128 x 48 pixels, stored at 64 x 48" in text
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png").convert("RGB"))
    frames = read(film, 4.0).frames
    for number, (column, row) in enumerate([(0, 0), (1, 0), (7, 0), (0, 1)]):
        place = [0, 1, 7, 8][number]
        x, y = 4 + column * 132, 4 + row * 66
        np.testing.assert_array_equal(sheet[y : y + 48, x : x + 128], frames[place])


def test_notes_and_errors(tmp_path: Path) -> None:
    clear = np.zeros((48, 64, 4), np.uint8)
    path = write_file(tmp_path / "clear.mov", [clear] * 3, codec="qtrle", pix_fmt="argb")
    clear[:24] = 255
    path = write_file(tmp_path / "clear.mov", [clear] * 3, codec="qtrle", pix_fmt="argb")
    assert "note: transparent parts" in run(str(path))
    assert any("transparent" in note for note in json.loads(run(str(path), "--json"))["notes"])
    with pytest.raises(VideoError, match="there is no file"):
        run(str(tmp_path / "none.mp4"))
    with pytest.raises(OptionError, match="cannot be written as a picture"):
        run(str(path), "--sheet", str(tmp_path / "sheet.nothing"))
    with pytest.raises(OptionError, match="no frame between"):
        run(str(path), "--start", "9")


def test_a_name_that_is_no_text(film: Path, tmp_path: Path) -> None:
    """Through a real command line, whose output takes text only."""
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    os.link(film, name)
    command = [sys.executable, "-m", "segmo", "frames", name]
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert "caf" in done.stdout.decode()
    failed = subprocess.run([sys.executable, "-m", "segmo", "frames", name + b"x"], capture_output=True, check=False)
    assert failed.returncode == 2
    assert "there is no file" in failed.stderr.decode()
