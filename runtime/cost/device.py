"""What a device does in a second: datasheet figures of accelerators, and the rates that planning uses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from segmo.checked import hint
from segmo.errors import PlanError
from segmo.runtime.cost.gain import Fusion

GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Sustained rates of one rank's device and of its link to the others.

    Attributes:
        name: what it is.
        gemm_flops: FLOP/s of a large matrix product.
        attention_flops: FLOP/s of flash attention on the pairs that its tiles visit.
        tile_keys: keys per row that tiles on the diagonal visit in vain.
        memory_bytes_per_s: of elementwise work.
        memory_bytes: memory that a plan may fill.
        call_seconds: fixed cost of one operator.
        link_seconds: latency of one step of a collective.
        link_bytes_per_s: what a rank sends and receives per second, in each direction, inside a node.
        network_bytes_per_s: the same between nodes.
        node_ranks: ranks of a node.
        source: where the figures come from.
        fusion: what inductor makes of a decoder layer; None where that was not measured.
    """

    name: str
    gemm_flops: float
    attention_flops: float
    tile_keys: float
    memory_bytes_per_s: float
    memory_bytes: int
    call_seconds: float
    link_seconds: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    node_ranks: int
    source: str
    fusion: Fusion | None = None

    def slower(self, factor: float) -> Device:
        """The same device at ``1 / factor`` of its speed, for ranks that share it or run at a lower clock."""
        return dataclasses.replace(
            self,
            name=f"{self.name}/{factor:g}",
            gemm_flops=self.gemm_flops / factor,
            attention_flops=self.attention_flops / factor,
            memory_bytes_per_s=self.memory_bytes_per_s / factor,
            call_seconds=self.call_seconds * factor,
        )


def _accelerator(name: str, tflops: float, gbps: float, memory_gb: int, link_gbps: float, source: str) -> Device:
    """Sustained rates from datasheet peaks.

    The shares of the peak are assumptions, the same for every accelerator: 70% in large matrix products, 60%
    in flash attention (FlashAttention-2 reports up to 73% on A100, FlashAttention-3 up to 75% on H100), 80%
    of memory and link bandwidth, 92% of the memory. Between nodes: one 400 Gbit/s port per accelerator.
    ``segmo calibrate`` replaces them.

    Args:
        tflops: dense BF16 peak. gbps: memory bandwidth, GB/s. link_gbps: both directions of the link, GB/s.
    """
    return Device(
        name=name,
        gemm_flops=0.7 * tflops * 1e12,
        attention_flops=0.6 * tflops * 1e12,
        tile_keys=64,
        memory_bytes_per_s=0.8 * gbps * GB,
        memory_bytes=int(0.92 * memory_gb * GB),
        call_seconds=5e-6,
        link_seconds=10e-6,
        link_bytes_per_s=0.8 * link_gbps / 2 * GB,
        network_bytes_per_s=0.8 * 50 * GB,
        node_ranks=8,
        source=source,
    )


DEVICES: dict[str, Device] = {
    "a100": _accelerator(
        "A100 SXM 80GB",
        312,
        2039,
        80,
        600,
        "NVIDIA A100 Tensor Core GPU datasheet, SXM 80GB column (BF16 dense)",
    ),
    "h100": _accelerator(
        "H100 SXM",
        989.5,
        3350,
        80,
        900,
        "NVIDIA H100 Tensor Core GPU datasheet, SXM (half of 1,979 with sparsity)",
    ),
    "b200": _accelerator(
        "B200",
        2250,
        8000,
        180,
        1800,
        "NVIDIA DGX B200 datasheet, an eighth of it (BF16 dense: half of sparse)",
    ),
    "mi300x": _accelerator(
        "MI300X", 1307.4, 5300, 192, 896, "AMD Instinct MI300X datasheet (BF16 dense; 7 links of 128 GB/s)"
    ),
    "cpu": Device(
        name="one CPU core",
        gemm_flops=150e9,
        attention_flops=65e9,
        tile_keys=128,
        memory_bytes_per_s=5e9,
        memory_bytes=8 * GIB,
        call_seconds=20e-6,
        link_seconds=200e-6,
        link_bytes_per_s=0.5e9,
        network_bytes_per_s=0.5e9,
        node_ranks=64,
        source="one x86-64 core with AVX-512 BF16 and gloo on one machine; run `segmo calibrate` for yours",
    ),
}


def device_named(name: str) -> Device:
    """A device of :data:`DEVICES`.

    Raises:
        PlanError: there is none of that name.
    """
    found = DEVICES.get(name.lower())
    if found is None:
        known = f"Known: {', '.join(DEVICES)}, or `calibrated`"
        raise PlanError(f"unknown device {name!r}{hint(name.lower(), DEVICES)} {known}")
    return found
