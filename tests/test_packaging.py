"""The source distribution and the wheel: complete, and usable without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOMES = {"segmo": "segmo", "passes": "segmo/passes", "runtime": "segmo/runtime"}

pytestmark = pytest.mark.slow


def build(hook: str, source: Path, out: Path) -> Path:
    """What one hook of the build backend makes of a folder, as pip and build call it."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, built from the source distribution, which was built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for name in HOMES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    with tarfile.open(build("build_sdist", source, folder)) as sdist:
        sdist.extractall(folder / "sdist", filter="data")
    (inside,) = (folder / "sdist").iterdir()
    with zipfile.ZipFile(build("build_wheel", inside, folder)) as wheel:
        wheel.extractall(folder / "wheel")
    return folder / "wheel"


def test_every_file_of_the_package_is_in_the_wheel_of_the_sdist(unpacked: Path) -> None:
    for name, home in HOMES.items():
        there = {
            path.relative_to(ROOT / name)
            for path in (ROOT / name).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        found = {path.relative_to(unpacked / home) for path in (unpacked / home).rglob("*") if path.is_file()}
        assert there - found == set(), f"pyproject.toml forgets files of {name}/"


def test_nothing_else_is_claimed(unpacked: Path) -> None:
    """passes and runtime are names that others want."""
    assert {path.name.partition("-")[0] for path in unpacked.iterdir()} == {"segmo"}


USE = """
import sys
from pathlib import Path
import segmo, segmo.passes, segmo.runtime
for module in (segmo, segmo.passes, segmo.runtime):
    assert Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
from segmo.ask.checkpoint import load
from segmo.runtime.kernels.configs import attention_spec
from segmo.runtime.kernels.render import render
from segmo.inspection.environment import examine
assert sum(p.numel() for p in load().model.parameters()) > 1e6
assert "segment" in render(attention_spec("sm_90", 128, "bf16", 7)).source
assert any(sys.argv[1] in fact.found for fact in examine())
print("used")
"""


def test_it_is_used_without_the_repository(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(unpacked)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["used"]
