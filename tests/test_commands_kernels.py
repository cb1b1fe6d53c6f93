"""``segmo kernels``."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from segmo.commands.kernels import kernels
from segmo.errors import KernelError

APP = typer.Typer()
APP.command()(kernels)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(APP, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_list_names_every_kernel_for_every_target() -> None:
    lines = _run("--list").splitlines()
    assert {line.split()[0] for line in lines} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert {line.split()[1] for line in lines if line.startswith("sm_90")} == {
        "segment_attention_kernel",
        "merge_splits_kernel",
        "merge_kernel",
        "decode_kernel",
        "question_lse_kernel",
        "key_scores_kernel",
        "scan_kernel",
        "finish_scan_kernel",
        "compact_kernel",
    }
    assert len(lines) == 4 * 3 * (5 * 6 + 3)  # targets, dtypes, head sizes with 6 entry points, 3 without heads


def test_source_is_printed_with_its_file_and_hash() -> None:
    output = _run("--source", "--kernel", "segment_attention", "--head-size", "80", "--dtype", "fp16")
    assert "D = 80 (in parts of 64 + 16), fp16" in output
    assert "def segment_attention_kernel(" in output
    assert "# hash " in output


def test_predictions_are_labelled_as_such() -> None:
    assert "Predicted, not measured" in _run("--predict", "--target", "sm_90")
    rows = json.loads(_run("--predict", "--json", "--target", "sm_80,sm_90"))
    assert {row["machine"] for row in rows} == {"A100-SXM-80GB", "H100-SXM"}
    attention = {row["kernel"]: row["predicted_us"] for row in rows if row["machine"] == "H100-SXM"}
    assert attention["segment attention, one layer"] < attention["full attention, one layer"] / 4


@pytest.mark.slow
def test_a_table_of_what_the_compiler_made() -> None:
    arguments = ("--target", "sm_90", "--kernel", "merge", "--head-size", "64", "--dtype", "bf16")
    assert "merge_kernel" in _run(*arguments)
    (row,) = json.loads(_run(*arguments, "--json"))
    assert row["problems"] == []
    assert row["registers"] > 0
    assert row["stack_bytes"] == 0


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(KernelError, match="no kernel magic"):
        _run("--kernel", "magic")
