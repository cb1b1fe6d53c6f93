"""Which implementation an operator runs on, why, and that a compiled graph cannot run another kernel.

An implementation is named by a string, which is an argument of the operator: ``"torch"``, or
``"triton@HASH"`` with the hash of the source of all kernels that the operator launches. A cache of compiled
code is keyed by such arguments, so it cannot hold another version of a kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from segmo.errors import CompileError, KernelError
from segmo.runtime.kernels.render import Kernel

TORCH = "torch"
_GENERATED = "triton@"


def kernel_name(*kernels: Kernel) -> str:
    """The name of an implementation by these generated kernels: one's own hash, or the hash of several."""
    hashes = list(dict.fromkeys(kernel.hash for kernel in kernels))
    if len(hashes) > 1:
        return _GENERATED + hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
    return _GENERATED + hashes[0]


def choose(
    lowering: str, device: torch.device, dtype: torch.dtype, make: Callable[[], str], fallback: str = TORCH
) -> tuple[str, str]:
    """Implementation and the reason for it.

    Args:
        lowering: the user's option.
        device, dtype: of the operator's data.
        make: gives the name of the generated kernels; raises KernelError if there are none for this case.
        fallback: the name where no kernel is generated.

    Raises:
        CompileError: ``lowering="triton"`` was asked for, and there is no kernel.
    """
    if lowering == "triton":
        try:
            return make(), "it was asked for"
        except KernelError as error:
            raise CompileError(f"lowering='triton' cannot be had: {error}") from error
    if lowering == "reference":
        return fallback, "it was asked for"
    name = str(dtype).removeprefix("torch.")
    if device.type == "cpu":
        return fallback, f"the tensors are {name} on the CPU"
    if device.type != "cuda":
        return fallback, f"there is no kernel for {device.type} in this version"
    try:
        return make(), f"the tensors are {name} on a GPU"
    except KernelError as error:
        return fallback, f"no kernel can be generated: {error}"


def is_generated(implementation: str) -> bool:
    """Whether the name is one of generated kernels."""
    return implementation.startswith(_GENERATED)


def runs_generated(implementation: str, make: Callable[[], str]) -> bool:
    """Whether an operator must launch generated kernels, for its argument ``implementation``.

    Raises:
        KernelError: the kernels that would be launched are others than those that the graph was compiled for,
            or the name is unknown.
    """
    if implementation == TORCH:
        return False
    if not is_generated(implementation):
        raise KernelError(f"there is no implementation {implementation!r}; known are torch and {_GENERATED}HASH")
    found = make()
    if found != implementation:
        raise KernelError(
            f"the graph was compiled for kernel {implementation}, this version of SegMo on this device makes {found}; "
            "compile the model again (torch.compiler.reset())"
        )
    return True
