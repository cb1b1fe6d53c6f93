"""Seconds of each part of a prefill on a device: linear in tokens, pairs and frames, plus a cost per call.

The model is a sum of rooflines, one per kind of work: matrix products at the GEMM rate, attention at the rate
of flash attention, elementwise work at memory bandwidth, and a fixed cost per operator. It has no other
constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from segmo.runtime.cost.device import Device
from segmo.runtime.cost.shape import ModelShape

# Operators of a decoder layer outside attention (norms, projections, rotary embedding, residuals, MLP), as
# eager counts.
LAYER_CALLS = 40
# Operators of one flash call and of its merge.
BLOCK_CALLS = 8


@dataclass(frozen=True)
class CostModel:
    """Cost of work on one rank, in seconds for all layers unless a name says otherwise."""

    shape: ModelShape
    device: Device

    def dense_seconds(self, tokens: float) -> float:
        """Everything in the decoder layers that is linear in tokens."""
        per_token = (
            self.shape.linear_flops / self.device.gemm_flops
            + self.shape.elementwise_bytes / self.device.memory_bytes_per_s
        )
        return self.shape.layers * per_token * tokens

    def layer_overhead_seconds(self) -> float:
        """Fixed cost of running all layers once."""
        return self.shape.layers * LAYER_CALLS * self.device.call_seconds

    def attention_seconds(self, pairs: float, rows: float = 0, blocks: float = 0, merged: float = 0) -> float:
        """Attention over visible pairs, in the layers with segments.

        Args:
            pairs: visible (query, key) pairs.
            rows: rows of causal blocks, whose diagonal tiles visit keys in vain.
            blocks: flash calls.
            merged: rows whose two parts are merged.
        """
        visited = pairs + rows * self.device.tile_keys
        flops = self.shape.pair_flops * visited
        calls = blocks * BLOCK_CALLS * self.device.call_seconds
        merging = merged * self.shape.merge_bytes / self.device.memory_bytes_per_s
        return self.shape.segment_layers * (flops / self.device.attention_flops + calls + merging)

    def vision_seconds(self, tokens: float, tokens_per_frame: float) -> float:
        """Encoding the frames behind that many video tokens; 0 when the features are given."""
        vision = self.shape.vision
        if vision is None or tokens == 0:
            return 0.0
        return (
            vision.linear_flops(tokens) / self.device.gemm_flops
            + vision.attention_flops(tokens, tokens_per_frame) / self.device.attention_flops
        )

    def gather_seconds(self, bytes_per_rank: float, world: int) -> float:
        """One all-gather to which every rank brings that many bytes.

        Each rank receives what all others bring; latency grows with the logarithm of the world size, as in
        NCCL's parallel aggregated trees. With more than one node the slower link between nodes sets the pace.
        """
        if world == 1:
            return 0.0
        return self._steps(world) * self.device.link_seconds + (world - 1) * bytes_per_rank / self._rate(world)

    def share_seconds(self, bytes_shared: float, sources: int, world: int) -> float:
        """Broadcasts from ``sources`` ranks that together bring that many bytes, started together."""
        return sources * self._steps(world) * self.device.link_seconds + bytes_shared / self._rate(world)

    def reduce_seconds(self, bytes_reduced: float, world: int) -> float:
        """One all-reduce: every byte leaves and arrives about twice, whatever the world size."""
        return 2 * (self._steps(world) * self.device.link_seconds + bytes_reduced / self._rate(world))

    def _steps(self, world: int) -> int:
        return math.ceil(math.log2(world))

    def _rate(self, world: int) -> float:
        inside = world <= self.device.node_ranks
        return self.device.link_bytes_per_s if inside else self.device.network_bytes_per_s
