"""``segmo watch``, ``segmo ask`` and ``segmo chat`` on a file, with the model that ships."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner
from video_files import noise_shots, write_file

from segmo.cli import app
from segmo.errors import CacheError, OptionError
from segmo.video.source import VideoError


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("film") / "film.mp4", noise_shots([30, 45, 20, 30], 48, 32))


def run(*arguments: str, text: str = "") -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, list(arguments), input=text)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture(scope="module")
def memory(film: Path) -> Path:
    out = film.with_suffix(".memory")
    assert f"{out.name}: " in run("watch", str(film)).replace("\n", "")
    return out


def test_a_watched_video_is_asked_without_the_film(memory: Path) -> None:
    out = run("ask", str(memory), "which digit does the tile show ?", "--max-new-tokens", "2")
    assert "answer:" in out
    assert "looked at 0:00.0-" in out


def test_a_chat_goes_on_until_an_empty_line(film: Path, memory: Path) -> None:
    for start in (film, memory):
        out = run("chat", str(start), "--max-new-tokens", "2", text="which digit ?\nforget\nand then ?\n\nnot asked\n")
        assert out.count("answer:") == 2
        assert out.count("looked at") == 2


def test_what_cannot_be_watched_is_refused_before_the_model_is_loaded(film: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CacheError, match="--out"):
        run("watch", str(film), "--out", str(tmp_path / "file"), "--model", "nowhere")
    with pytest.raises(OptionError, match="fps is 0"):
        run("watch", str(film), "--fps", "0", "--model", "nowhere")
    for command in ("watch", "chat"):
        with pytest.raises(VideoError, match="no file"):
            run(command, str(tmp_path / "film.mp4"), "--model", "nowhere")


def test_a_wrong_question_does_not_end_a_chat(memory: Path) -> None:
    out = run("chat", str(memory), "--max-new-tokens", "1", text="what is <|video_pad|>\nwhich digit ?\n\n")
    assert "must not hold" in out
    assert out.count("answer:") == 1
    with pytest.raises(OptionError, match="generate"):
        run("ask", str(memory), "which digit ?", "--max-new-tokens", "0")


def test_a_folder_without_a_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="holds no memory"):
        run("ask", str(tmp_path), "what ?")


def test_a_memory_is_not_replaced_by_that_of_another_video(film: Path, memory: Path) -> None:
    again = run("watch", str(film)).replace("\n", "")
    assert f"{memory.name}: " in again  # the same video is watched anew
    other = write_file(film.with_suffix(".mkv"), noise_shots([30], 48, 32))
    before = sorted(path.stat().st_mtime_ns for path in memory.iterdir())
    with pytest.raises(CacheError, match=r"memory of another video, .*film\.mp4; name a folder with --out"):
        run("watch", str(other), "--model", "nowhere")
    assert sorted(path.stat().st_mtime_ns for path in memory.iterdir()) == before
    assert "other: " in run("watch", str(other), "--out", str(film.parent / "other")).replace("\n", "")


def test_a_folder_of_pictures_is_watched_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "trip.2024"
    pictures.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(pictures / f"{number}.png")
    monkeypatch.chdir(pictures)
    run("watch", ".")
    assert (tmp_path / "trip.2024.memory" / "memory.json").is_file()


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_no_utf8_is_watched(film: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"f\xff.mp4")
    odd.write_bytes(film.read_bytes())
    for _ in range(2):
        assert "out: " in run("watch", str(odd), "--out", str(tmp_path / "out")).replace("\n", "")
    (tmp_path / "out").rename(odd.with_suffix(".memory"))
    with pytest.raises(CacheError, match="memory of another video"):
        run("watch", str(odd.with_suffix(".mkv")), "--model", "nowhere")
