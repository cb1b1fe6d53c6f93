"""Which implementation a device, dtype and shape gets, and that a compiled graph cannot run another
kernel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreter import interpret

from segmo.errors import CompileError, KernelError
from segmo.runtime.attention import reference
from segmo.runtime.attention.choice import Shape, choose, generated_kernel, implementation
from segmo.runtime.schedule import RowSchedule, pack

CPU = Shape(torch.device("cpu"), torch.float32, 64, 4, 2)
META = Shape(torch.device("meta"), torch.bfloat16, 64, 4, 2)


def test_the_cpu_gets_flash() -> None:
    assert choose("auto", CPU) == ("flash", "the tensors are float32 on the CPU")


def test_the_reference_is_there_for_the_asking() -> None:
    assert choose("reference", META)[0] == "reference"


def test_flash_is_the_cpu_s_alone() -> None:
    with pytest.raises(CompileError, match="the model is on meta"):
        choose("flash", META)


def test_a_device_without_kernels_says_so() -> None:
    name, reason = choose("auto", META)
    assert name == "reference"
    assert "no kernel for meta" in reason


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KernelError, match="known are reference, flash"):
        implementation("magic")


def _run(name: str, *arguments: Any) -> torch.Tensor:
    return implementation(name)(*arguments)


def _arguments() -> tuple[Any, ...]:
    q, k, v = (torch.randn(1, heads, 40, 64) for heads in (4, 2, 2))
    return q, k, v, pack([RowSchedule(0, 3, (15, 30), 40, (4, 5))]), 0.125


def test_the_op_runs_the_kernel_that_its_hash_names() -> None:
    arguments = _arguments()
    name = interpret(generated_kernel, CPU)
    assert name.startswith("triton@")
    torch.testing.assert_close(interpret(_run, name, *arguments), reference.segment_attention(*arguments))


def _opcheck(name: str, arguments: tuple[Any, ...]) -> dict[str, str]:
    import segmo.runtime.ops  # noqa: F401

    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    return torch.library.opcheck(torch.ops.segmo.segment_attention.default, (*arguments, name), test_utils=utilities)


@pytest.mark.parametrize("name", ["triton", "flash", "reference"])
def test_the_op_states_its_strides(name: str) -> None:
    if name == "triton":
        name = interpret(generated_kernel, CPU)
    found = interpret(_opcheck, name, _arguments())
    assert set(found.values()) == {"SUCCESS"}


def test_another_version_s_hash_is_an_error() -> None:
    with pytest.raises(KernelError, match="compile the model again"):
        interpret(_run, "triton@0123456789abcdef", *_arguments())


def test_the_hash_follows_what_the_kernel_is_made_of() -> None:
    shapes = [
        CPU,
        Shape(CPU.device, torch.float16, 64, 4, 2),
        Shape(CPU.device, torch.float32, 80, 4, 2),
        Shape(CPU.device, torch.float32, 64, 4, 1),
    ]
    assert len({interpret(generated_kernel, shape) for shape in shapes}) == len(shapes)


@pytest.mark.gpu
def test_a_gpu_gets_the_generated_kernel() -> None:
    shape = Shape(torch.device("cuda"), torch.bfloat16, 128, 28, 4)
    name, reason = choose("auto", shape)
    assert name == generated_kernel(shape)
    assert "on a GPU" in reason
    odd = Shape(torch.device("cuda"), torch.bfloat16, 72, 28, 4)
    assert choose("auto", odd)[0] == "reference"
    assert "multiple of 16" in choose("auto", odd)[1]
