"""Tuning: the fastest config is kept on disk for this device and this kernel alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import triton

from segmo.errors import KernelError
from segmo.runtime.kernels.configs import attention_config, attention_spec
from segmo.runtime.kernels.specs import AttentionSpec, Config
from segmo.runtime.kernels.tuned import candidates, load, tune, tuned_attention_spec

SPEC = attention_spec("sm_90", 128, "bf16", 7)
FAST, SLOW, TOO_LARGE, WRONG = Config(64, 64, 4, 2), Config(128, 32, 8, 2), Config(128, 128, 4, 9), Config(16, 16, 4, 1)


def _seconds(spec: AttentionSpec) -> float:
    if spec.config == TOO_LARGE:
        raise triton.OutOfResources(400_000, 232_448, "shared memory")
    if spec.config == WRONG:
        raise KernelError("its output is wrong")
    return 1e-3 if spec.config == FAST else 2e-3


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMO_CACHE", str(tmp_path))


def test_the_fastest_config_is_kept(tmp_path: Path) -> None:
    assert load("H100", SPEC) is None
    assert tune("H100", SPEC, [SLOW, TOO_LARGE, WRONG, FAST], _seconds) == FAST
    assert load("H100", SPEC) == FAST
    (file,) = (tmp_path / "tuned").iterdir()
    assert [timed["seconds"] for timed in json.loads(file.read_text())["timed"]] == [2e-3, 1e-3]


def test_a_result_is_of_one_device_and_one_kernel() -> None:
    tune("H100", SPEC, [FAST], _seconds)
    assert load("H200", SPEC) is None
    assert load("H100", attention_spec("sm_90", 128, "bf16", 4)) is None


def test_nothing_that_fits_is_an_error() -> None:
    with pytest.raises(KernelError, match="none of the tile sizes"):
        tune("H100", SPEC, [TOO_LARGE, WRONG], _seconds)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    tune("H100", SPEC, [FAST], _seconds)
    (file,) = (tmp_path / "tuned").iterdir()
    file.write_text('{"config": {"block_m": 64')
    with pytest.raises(KernelError, match="delete it and tune again"):
        load("H100", SPEC)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_candidates_begin_with_the_default(target: str, dtype: str) -> None:
    found = candidates(target, 128, dtype)
    assert found[0] == attention_config(target, 128, dtype)
    assert len(set(found)) == len(found) > 3
    assert all(config.block_m >= 16 and config.block_n >= 16 and config.stages >= 1 for config in found)


def test_without_a_gpu_the_default_counts() -> None:
    spec = tuned_attention_spec("sm_90", torch.device("cpu"), 128, "bf16", 7, (512, 512))
    assert spec.config == attention_config("sm_90", 128, "bf16")
    assert (spec.key_stride, spec.value_stride) == (512, 512)
