"""A training run's folder: checkpoint, log, and the record of the commands and commits that filled it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


class RunFolder:
    """``checkpoint.pt``, ``log.jsonl`` and ``stages.json`` in one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Add one JSON line."""
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def cut_log(self, update: int) -> None:
        """Take out the lines after ``update``: a run that goes on from its checkpoint writes them again."""
        path = self.path / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= update))

    def save(self, record: dict[str, Any]) -> None:
        """Write the checkpoint; a run that is broken off meanwhile keeps the one before."""
        torch.save(record, self.path / "checkpoint.part")
        (self.path / "checkpoint.part").replace(self.path / "checkpoint.pt")

    def load(self) -> dict[str, Any] | None:
        """The checkpoint, or None."""
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        record: dict[str, Any] = torch.load(path, weights_only=True)
        return record

    def note_start(self, update: int) -> None:
        """Write down command and commit from this update on, for the record that ships with the weights.

        The folder is written as the default one, whatever it is on this machine.
        """
        path = self.path / "stages.json"
        stages = json.loads(path.read_text()) if path.is_file() else []
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).replace(str(self.path), "out/sceneqa")
        stages.append({"from update": update, "commit": commit.stdout.strip(), "command": command})
        path.write_text(json.dumps(stages, indent=2))
