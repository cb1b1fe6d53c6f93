"""``segmo warm``: what lies on disk afterwards, and what is said where nothing can."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ask_models import write_model
from typer.testing import CliRunner

from segmo.cli import app
from segmo.commands.warm import SCENES, moving_pictures
from segmo.errors import OptionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one decoder layer: each takes inductor seconds."""
    written = write_model("qwen2_vl", tmp_path_factory.mktemp("model"))
    config = json.loads((written / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": config["text_config"]["layer_types"][:1]}
    (written / "config.json").write_text(json.dumps(config))
    return written


def warm(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["warm", *arguments, "--device", "cpu", "--frames", "8"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("fresh_dynamo")
def test_what_inductor_compiles_lies_on_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    out = warm(str(folder), "--lowering", "inductor", "--keep", "0.5")
    files = [file for file in (tmp_path / "inductor").rglob("*") if file.is_file()]
    assert re.search(rf"before: empty; now: {len(files):,} files", out)
    assert any(file.suffix == ".so" for file in files)
    assert "nothing is compiled" not in out


@pytest.mark.usefixtures("fresh_dynamo")
def test_where_no_disk_helps_it_says_so(folder: Path) -> None:
    out = warm(str(folder))
    first, again = (float(seconds) for seconds in re.findall(r"│ +(\d+\.\d+) │", out))
    assert first > 0 < again
    assert "nothing is compiled that a disk could hold" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "not a folder with a model"),
        (["--scorer", "external"], "scores from a program"),
        (["--lowering", "eager"], "'lowering' is 'eager'"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
    ],
)
def test_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        CliRunner().invoke(app, ["warm", *arguments], catch_exceptions=False)


def test_its_video_has_scenes_and_movement() -> None:
    video = moving_pictures(12, (64, 48))
    assert video.shape == (12, 48, 64, 3)
    changed = np.abs(np.diff(video.astype(int), axis=0)).mean((1, 2, 3))
    cuts = sorted(np.argsort(changed)[-(SCENES - 1) :] + 1)
    assert cuts == [3, 6, 9]
    assert (changed > 0).all()
