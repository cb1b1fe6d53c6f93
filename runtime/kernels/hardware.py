"""Data sheets: what the machines of the default targets can do. Peaks, not measurements."""

from __future__ import annotations

from dataclasses import dataclass

from segmo.errors import KernelError

_KIB = 1024


@dataclass(frozen=True)
class Machine:
    """One GPU.

    Attributes:
        name: as sold.
        target: the compiler's name of its architecture.
        processors: multiprocessors (AMD: compute units).
        matrix_flops: dense peak per second by dtype; fp32 is what ``tf32x3`` (a third of TF32) or AMD's fp32
        units give.
        bandwidth: of device memory, bytes per second.
        shared: shared memory of a multiprocessor, bytes.
        registers: 32-bit registers of a multiprocessor, all threads together.
        threads_per_warp: 32, AMD 64.
        warps: warps that a multiprocessor can hold.
        source: where the peaks come from.
    """

    name: str
    target: str
    processors: int
    matrix_flops: dict[str, float]
    bandwidth: float
    shared: int
    registers: int
    threads_per_warp: int
    warps: int
    source: str

    def occupancy(self, registers: int, shared: int, warps: int) -> int:
        """Programs that a multiprocessor can hold.

        Args:
            registers: per thread, handed out in eights. shared: bytes per program. warps: of a program.
        """
        per_thread = -(-max(registers, 1) // 8) * 8
        by_registers = self.registers // (per_thread * self.threads_per_warp * warps)
        reserved = 0 if self.threads_per_warp == 64 else _KIB  # CUDA keeps 1 KiB of each program's share for itself
        by_shared = self.shared // (shared + reserved) if shared + reserved else self.warps
        return min(by_registers, by_shared, self.warps // warps)


A100 = Machine(
    "A100-SXM-80GB",
    "sm_80",
    108,
    {"bf16": 312e12, "fp16": 312e12, "fp32": 156e12 / 3},
    2039e9,
    164 * _KIB,
    65536,
    32,
    64,
    "NVIDIA A100 Tensor Core GPU data sheet; CUDA C++ Programming Guide, compute capability 8.0",
)
H100 = Machine(
    "H100-SXM",
    "sm_90",
    132,
    {"bf16": 989.4e12, "fp16": 989.4e12, "fp32": 494.7e12 / 3},
    3350e9,
    228 * _KIB,
    65536,
    32,
    64,
    "NVIDIA H100 Tensor Core GPU data sheet, halved where it counts sparsity; CUDA C++ Guide, compute capability 9.0",
)
B200 = Machine(
    "B200",
    "sm_100",
    148,
    {"bf16": 2250e12, "fp16": 2250e12, "fp32": 1100e12 / 3},
    8000e9,
    228 * _KIB,
    65536,
    32,
    64,
    "NVIDIA DGX B200 data sheet (8 GPUs, halved where it counts sparsity); CUDA C++ Programming Guide, 10.0",
)
MI300X = Machine(
    "MI300X",
    "gfx942",
    304,
    {"bf16": 1307.4e12, "fp16": 1307.4e12, "fp32": 163.4e12},
    5300e9,
    64 * _KIB,
    4 * 512 * 64,
    64,
    32,
    "AMD Instinct MI300X data sheet; AMD CDNA 3 ISA guide (512 vector registers per lane and SIMD, 64 KiB LDS)",
)
MACHINES = {machine.target: machine for machine in (A100, H100, B200, MI300X)}


def machine(target: str) -> Machine:
    """The machine of a target.

    Raises:
        KernelError: there is no data sheet for the target.
    """
    if target not in MACHINES:
        raise KernelError(f"no data sheet for {target}; known are {', '.join(MACHINES)}")
    return MACHINES[target]
