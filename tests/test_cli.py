"""The ``segmo`` program: what it offers, and how it says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from segmo.cli import app


def test_help_names_the_commands() -> None:
    out = CliRunner().invoke(app, ["--help"])
    assert out.exit_code == 0
    for command in ("demo", "run"):
        assert command in out.output


def test_a_wrong_option_is_one_line_and_not_a_traceback() -> None:
    command = [sys.executable, "-m", "segmo", "demo", "--keep", "1.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "torch/utils/_pytree.py" not in line]  # torch, of torchao
    assert said == ["segmo: option 'keep' is 1.5; it must be a number with 0 < keep <= 1"]


def test_what_a_disk_refuses_is_one_line_and_not_a_traceback() -> None:
    command = [sys.executable, "-m", "segmo", "plan", "--segments", "100,200"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "segmo: [Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
