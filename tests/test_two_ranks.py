"""The example for several ranks, started as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "two_ranks.py"


def answers(*launcher: str) -> dict[str, str]:
    """The generated ids that each rank printed."""
    command = [sys.executable, *launcher, str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(re.findall(r"rank (\d) of \d: (\[[\d, ]+\])", done.stdout))


@pytest.mark.slow
def test_two_ranks_under_torchrun_answer_as_one_process():
    alone = answers()
    assert set(alone) == {"0"}
    together = answers("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert together == {"0": alone["0"], "1": alone["0"]}
