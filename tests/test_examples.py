"""The examples run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "generate.py"))["main"](["--keep", "0.5"])
    assert "of them kept (50.0%)" in capsys.readouterr().out
