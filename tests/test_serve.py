"""``segmo serve``: what it hands to vLLM, and what it says where there is none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from segmo.commands.serve import server_arguments
from segmo.errors import OptionError


def test_keep_is_what_pruning_leaves() -> None:
    assert server_arguments("m", 0.25, False, ["--port", "80"]) == (
        ["--model", "m", "--port", "80", "--video-pruning-rate", "0.75"]
    )
    assert server_arguments("m", 0.1, True, [])[2:] == (
        ["--video-pruning-rate", "0.9", "--mm-processor-kwargs", '{"question_blind": true}']
    )
    assert server_arguments("m", 1, False, []) == ["--model", "m"]


def test_frames_go_to_the_video_loader() -> None:
    assert server_arguments("m", 1, False, [], frames=8)[2:] == (
        ["--media-io-kwargs", '{"video": {"video_backend": "segmo", "num_frames": 16, "pictures": 2}}']
    )
    with pytest.raises(OptionError, match="--media-io-kwargs is what segmo serve sets"):
        server_arguments("m", 1, False, ["--media-io-kwargs", "{}"], frames=8)


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_a_budget_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(OptionError, match="--keep is"):
        server_arguments("m", keep, False, [])


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="--video-pruning-rate is what segmo serve sets"):
        server_arguments("m", 0.5, False, ["--video-pruning-rate=0.9"])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "segmo", "serve", "m", "--port", "80"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'segmo[vllm]'" in done.stderr
