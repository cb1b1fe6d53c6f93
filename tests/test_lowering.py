"""The choice of an operator's implementation, and that another version's kernel is refused."""

from __future__ import annotations

import pytest
import torch

from segmo.errors import CompileError, KernelError
from segmo.runtime.kernels.render import Kernel
from segmo.runtime.lowering import TORCH, choose, is_generated, kernel_name, runs_generated

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
NAME = "triton@0123456789abcdef"


def _none() -> str:
    raise KernelError("head size 72 is not a multiple of 16")


def test_one_kernel_is_named_by_its_hash_and_several_by_all_of_theirs() -> None:
    first, second = Kernel("a", "x = 1\n"), Kernel("b", "y = 2\n")
    assert kernel_name(first) == kernel_name(first, first) == f"triton@{first.hash}"
    assert len({kernel_name(first), kernel_name(second), kernel_name(first, second)}) == 3
    assert is_generated(kernel_name(first, second))
    assert not is_generated(TORCH)


@pytest.mark.parametrize(
    ("lowering", "device", "expected"),
    [
        ("auto", CUDA, (NAME, "the tensors are float16 on a GPU")),
        ("inductor", CUDA, (NAME, "the tensors are float16 on a GPU")),
        ("triton", CUDA, (NAME, "it was asked for")),
        ("triton", CPU, (NAME, "it was asked for")),
        ("reference", CUDA, (TORCH, "it was asked for")),
        ("auto", CPU, (TORCH, "the tensors are float16 on the CPU")),
        ("flash", CPU, (TORCH, "the tensors are float16 on the CPU")),
        ("auto", META, (TORCH, "there is no kernel for meta in this version")),
    ],
)
def test_choice(lowering: str, device: torch.device, expected: tuple[str, str]) -> None:
    assert choose(lowering, device, torch.float16, lambda: NAME) == expected


def test_without_a_kernel_torch_runs_and_the_reason_says_why() -> None:
    name, reason = choose("auto", CUDA, torch.float16, _none)
    assert name == TORCH
    assert reason == "no kernel can be generated: head size 72 is not a multiple of 16"
    with pytest.raises(CompileError, match="cannot be had: head size 72"):
        choose("triton", CUDA, torch.float16, _none)


def test_only_the_kernel_that_was_compiled_for_runs() -> None:
    assert not runs_generated(TORCH, _none)
    assert runs_generated(NAME, lambda: NAME)
    with pytest.raises(KernelError, match="compile the model again"):
        runs_generated(NAME, lambda: "triton@fedcba9876543210")
    with pytest.raises(KernelError, match="no implementation 'magic'"):
        runs_generated("magic", _none)
