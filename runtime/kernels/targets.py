"""Compiling a generated kernel for a GPU that is not there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from segmo.errors import KernelError
from segmo.runtime.kernels.render import Kernel

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# NVIDIA's architectures with matrix instructions. At a number that is none, Triton's compiler ends the process.
CAPABILITIES = (80, 86, 87, 89, 90, 100, 103, 110, 120, 121)


@dataclass(frozen=True)
class Binary:
    """One compiled entry point.

    Attributes:
        target: such as ``"sm_90"``.
        entry: name of the function.
        warps: warps of a program.
        shared: shared memory of a program in bytes.
        assembly: PTX, or AMD GCN assembly.
        code: the cubin or hsaco.
    """

    target: str
    entry: str
    warps: int
    shared: int
    assembly: str
    code: bytes


def gpu_target(target: str) -> Any:
    """Triton's description of ``sm_*`` and ``gfx*`` names.

    Raises:
        KernelError: the name is neither.
    """
    from triton.backends.compiler import GPUTarget

    match = re.fullmatch(r"sm_(\d+)", target)
    if match and int(match[1]) in CAPABILITIES:
        return GPUTarget("cuda", int(match[1]), 32)
    if re.fullmatch(r"gfx9[0-9a-f]+", target):
        return GPUTarget("hip", target, 64)
    raise KernelError(
        f"unknown target {target!r}; known are {', '.join(f'sm_{number}' for number in CAPABILITIES)} and gfx9NN"
    )


def _typed(signature: dict[str, str]) -> tuple[dict[str, str], dict[tuple[int], list[list[object]]]]:
    """Types by name, and the alignment of those that end in ``:16``."""
    types = {name: kind.partition(":")[0] for name, kind in signature.items()}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, kind in enumerate(signature.values())
        if kind.endswith(":16")
    }
    return types, aligned


def specialized(signature: dict[str, str]) -> dict[str, int]:
    """Arguments that a launch may turn into constants: Triton compiles an integer that is 1 as such.

    A constant has no ``.to()``, among other things, so a kernel must compile for it too.
    """
    return {name: 1 for name, kind in signature.items() if kind.startswith("i32")}


def compile_entry(kernel: Kernel, entry: str, target: str, constants: dict[str, int] | None = None) -> Binary:
    """Compiles one entry point with Triton and the target's own assembler. No GPU is needed.

    Args:
        kernel, entry: what to compile.
        target: such as ``"sm_90"``.
        constants: values of arguments that are compiled in, as a launch does with ones.

    Raises:
        KernelError: Triton runs as an interpreter, or the kernel needs more than the target has.
    """
    import triton
    from triton.compiler import ASTSource

    module: Any = kernel.load()
    function = getattr(module, entry)
    if not hasattr(function, "cache_key"):
        raise KernelError("kernels cannot be compiled while TRITON_INTERPRET=1 is set; unset it")
    types, aligned = _typed(module.SIGNATURES[entry])
    constants = constants or {}
    types |= dict.fromkeys(constants, "constexpr")
    places = {(list(types).index(name),) for name in constants}
    aligned = {place: facts for place, facts in aligned.items() if place not in places}
    options = {"num_warps": module.NUM_WARPS, "num_stages": module.NUM_STAGES}
    source = ASTSource(function, types, constants, aligned)
    try:
        compiled = triton.compile(source, target=gpu_target(target), options=options)
    except (RuntimeError, triton.CompilationError) as error:
        raise KernelError(f"{entry} ({kernel.hash}) does not compile for {target}: {error}") from error
    amd = target.startswith("gfx")
    return Binary(
        target=target,
        entry=entry,
        warps=module.NUM_WARPS,
        shared=compiled.metadata.shared,
        assembly=compiled.asm["amdgcn" if amd else "ptx"],
        code=compiled.asm["hsaco" if amd else "cubin"],
    )
