"""``segmo doctor`` and ``segmo --version``: what they say where all is well, and where it is not."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import segmo
from segmo.cli import app
from segmo.compat import versions
from segmo.inspection import environment
from segmo.inspection.environment import Fact, as_text, broken, examine


def test_the_version_is_that_of_the_package() -> None:
    out = CliRunner().invoke(app, ["--version"])
    assert out.exit_code == 0
    assert out.output.strip() == f"segmo {segmo.__version__}"
    assert version("segmo") == segmo.__version__


def test_where_all_is_well_it_is_one_screen_and_nothing_to_do() -> None:
    out = CliRunner().invoke(app, ["doctor"])
    assert out.exit_code == 0
    lines = out.output.splitlines()
    assert len(lines) < 40
    for topic in ("segmo", "python", "torch", "transformers", "backend", "inside", "cpu", "triton", "decoder", "cache"):
        assert any(line.startswith(topic) for line in lines), topic
    assert torch.__version__.partition("+")[0] in out.output
    assert "segmo.calls.backend:segmo" in out.output


def found(monkeypatch: pytest.MonkeyPatch, **other: str | None) -> list[Fact]:
    real = versions.installed

    def installed(package: str) -> str | None:
        return other[package] if package in other else real(package)

    monkeypatch.setattr(environment, "installed", installed)
    return examine()


@pytest.mark.parametrize(
    ("other", "said", "fatal"),
    [
        ({"torch": "2.10.1"}, r'torch: .*pip install "torch>=2.11"', True),
        ({"transformers": "5.17.0"}, r"transformers: .*video.*transformers>=5.18", True),
        ({"transformers": None}, r'transformers: pip install "transformers>=5.18"', True),
        ({"torch": "2.99.0"}, "torch: newer than anything tested", False),
        ({"av": None, "filelock": None}, r"video: .*segmo\[video\]", False),
    ],
)
def test_what_is_outside_of_what_was_tested_is_said_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, str | None], said: str, fatal: bool
) -> None:
    facts = found(monkeypatch, **other)
    remedies = [line for line in as_text(facts).splitlines() if line.startswith("- ")]
    assert any(re.search(said, line) for line in remedies), remedies
    assert broken(facts) == fatal


def test_a_probe_that_fails_is_a_line_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(torch.cpu, "get_capabilities", fail)
    facts = examine()
    assert any("OSError: no such thing" in fact.found for fact in facts)
    assert broken(facts)


def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(environment.os, "access", lambda path, mode: False)
    facts = examine()
    assert any(str(tmp_path) in fact.found and "XDG_CACHE_HOME" in fact.remedy for fact in facts)
    assert not broken(facts)
