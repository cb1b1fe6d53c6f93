"""What the assembler made of a kernel: registers, spills, shared memory, occupancy, matrix instructions,
inner loop.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from segmo.errors import KernelError
from segmo.runtime.kernels import loops
from segmo.runtime.kernels.hardware import machine
from segmo.runtime.kernels.loops import Loop
from segmo.runtime.kernels.targets import Binary


@dataclass(frozen=True)
class Inspection:
    """Facts about one compiled entry point.

    Attributes:
        registers: per thread; for AMD, vector registers with accumulation registers.
        stack: bytes per thread in local memory, which is where spilled registers go.
        spill_instructions: loads and stores of local (AMD: scratch) memory.
        shared: bytes per program.
        occupancy: programs that one multiprocessor can hold, limited by registers, shared memory and warps.
        matrix: kinds of matrix instructions, none for kernels that multiply no matrices.
        async_copies: instructions that copy from memory to shared memory without passing registers.
        loops: innermost loops with matrix instructions, in program order.
        instructions: of the whole entry point.
    """

    registers: int
    stack: int
    spill_instructions: int
    shared: int
    occupancy: int
    matrix: tuple[str, ...]
    async_copies: int
    loops: tuple[Loop, ...]
    instructions: int

    @property
    def main_loop(self) -> Loop | None:
        """The leanest loop, which is the one over tiles of keys that need no mask."""
        return min(self.loops, key=lambda loop: loop.ratio, default=None)

    @property
    def spills(self) -> bool:
        """Some register lives in memory."""
        return self.stack > 0 or self.spill_instructions > 0


def _tool(name: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise KernelError(f"this Triton ships no {name} (looked for {path}); inspect with a PyPI build of Triton")
    return str(path)


def _run(tool: str, *arguments: str) -> str:
    result = subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise KernelError(f"{tool} failed: {result.stderr.strip()}")
    return result.stdout


def _field(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise KernelError(f"the assembler's report holds no {pattern!r}; its format has changed")
    return int(match[1])


def _nvidia(binary: Binary) -> tuple[int, int, str]:
    """Registers, stack, and disassembly."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.code)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        return _field(usage, r"REG:(\d+)"), _field(usage, r"STACK:(\d+)"), _run("nvdisasm", "-c", file.name)


def _amd(binary: Binary) -> tuple[int, int, str]:
    text = binary.assembly
    vector, stack = (
        _field(text, r"\.vgpr_count: +(\d+)"),
        _field(text, r"\.private_segment_fixed_size: (\d+)"),
    )
    return vector, stack, text


def inspect(binary: Binary) -> Inspection:
    """Reads a compiled entry point with the tools that ship with Triton.

    Raises:
        KernelError: a tool is missing or prints something else than expected.
    """
    registers, stack, text = (_amd if binary.target.startswith("gfx") else _nvidia)(binary)
    lines = [line for line in loops.instructions(text) if not line.startswith(".L")]
    kinds = {kind for line in lines if (kind := loops.matrix_kind(line))}
    return Inspection(
        registers=registers,
        stack=stack,
        spill_instructions=loops.count(lines, loops.SPILL),
        shared=binary.shared,
        occupancy=machine(binary.target).occupancy(registers, binary.shared, binary.warps),
        matrix=tuple(sorted(kinds)),
        async_copies=loops.count(lines, loops.ASYNC_COPY),
        loops=tuple(loops.matrix_loops(text)),
        instructions=len(lines),
    )
