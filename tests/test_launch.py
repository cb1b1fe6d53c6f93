"""``segmo.launched``: one program, alone and under torchrun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import segmo
from segmo.demo.clips import clip_path
from segmo.errors import OptionError
from segmo.options import Options
from segmo.passes.pipeline import build_pipeline

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*command: str) -> str:
    """What a program printed; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=1500, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_alone_it_is_one_rank_that_speaks() -> None:
    with segmo.launched("cpu") as launch:
        assert (launch.ranks.rank, launch.ranks.world, launch.speaks) == (0, 1, True)
        assert launch.device == torch.device("cpu")
        assert launch.options == {}
    assert not dist.is_initialized()


def test_a_sharded_cache_is_asked_for_in_the_pipeline() -> None:
    with segmo.launched("cpu", cache="sharded") as launch:
        passes = {each.name: each for each in build_pipeline(Options(**launch.options))}
    plain = {each.name: each for each in build_pipeline(Options())}
    assert passes.keys() == plain.keys()
    assert [name for name in plain if passes[name] != plain[name]] == ["shard-segments"]
    assert passes["shard-segments"].cache == "sharded"


@pytest.mark.parametrize(
    ("given", "message"),
    [({"cache": "none"}, "one of 'gather', 'sharded'"), ({"cache": "sharded", "pipeline": "x"}, "into the pipeline")],
)
def test_wrong_caches_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message), segmo.launched("cpu", **given):
        pass


@pytest.mark.slow
def test_under_torchrun_every_rank_answers_as_one_process() -> None:
    program = str(HERE / "launch_program.py")
    (alone,) = re.findall(r"rank 0 speaks: (.*)", run(program, "gather"))
    together = run(*TORCHRUN, program, "sharded")
    assert sorted(re.findall(r"rank (\d) (\w+): (.*)", together)) == [("0", "speaks", alone), ("1", "listens", alone)]


@pytest.mark.slow
def test_segmo_run_under_torchrun_answers_once_and_as_one_process(tmp_path: Path) -> None:
    report = tmp_path / "report"
    command = ("-m", "segmo", "run", str(clip_path("bikes")), "which digit in red dots", "--keep", "0.5")
    command += ("--max-new-tokens", "2", "--cache-folder", str(tmp_path / "cache"), "--device", "cpu")
    together = run(*TORCHRUN, *command, "--report", str(report))
    alone = run(*command)
    assert re.findall("answer: (.*)", together) == re.findall("answer: (.*)", alone)
    graphs = json.loads((report / "segmo-report.json").read_text())["graphs"]
    assert any("shard-segments: 2 ranks" in note for graph in graphs for note in graph["notes"])
