"""The further training of the shipped model: a run that was broken off goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import further
import mixture
import pytest
import torch
from further import Further, read_arguments

from segmo.sceneqa.model import load_model

CUT, ALL = 2, 3  # updates, the first of single frames


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short videos, few of them, and few single frames."""
    short = tuple(mixture.Source(source.name, source.share, ((5, 10, 1.0),)) for source in mixture.SOURCES)
    for module in (mixture, further):
        monkeypatch.setattr(module, "SOURCES", short)
    monkeypatch.setattr(mixture, "ROOM", 400)
    monkeypatch.setattr(further, "STILL_PATCHES", 768)


def _trained(folder: Path, updates: int) -> Further:
    """A run into this folder that ends, or is broken off, after so many updates."""
    run = Further(read_arguments(["--out", str(folder), "--stills", "1", "--steps", str(ALL - 1)]))
    run.resume()
    while run.state.step < updates:
        run.train_step()
    run.save()
    return run


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on(small: None, tmp_path: Path) -> None:
    whole = _trained(tmp_path / "whole", ALL)
    assert _trained(tmp_path / "parts", CUT).state.step == CUT
    parts = _trained(tmp_path / "parts", ALL)
    torch.testing.assert_close(dict(parts.model.state_dict()), dict(whole.model.state_dict()))
    shipped = load_model()[0].state_dict()
    learnt = [name for name, weight in whole.model.state_dict().items() if not torch.equal(weight, shipped[name])]
    assert any("visual" in name for name in learnt)
    assert any("language_model" in name for name in learnt)
