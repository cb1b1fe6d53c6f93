"""Bytes that a rank holds during and after a prefill, and the refusal of a plan that does not fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from segmo.errors import MemoryPlanError
from segmo.runtime.cost.device import GIB, Device
from segmo.runtime.cost.shape import ModelShape


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        weights: the whole model; it is replicated.
        cache: keys and values, for all layers, of the tokens whose cache the rank ends with.
        activations: the peak while a layer runs, over the rank's own tokens.
        exchanged: keys and values received in one layer, or what all ranks' tokens are in a layer that needs them.
        embeddings: of the whole prompt's video before selection, other ranks' included.
    """

    weights: int
    cache: int
    activations: int
    exchanged: int
    embeddings: int

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by name."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        return ", ".join(f"{part} {size / GIB:.2f}" for part, size in self.parts().items())


def rank_memory(
    shape: ModelShape, tokens: int, cached: int, received: int, features: int = 0, joined: int = 0
) -> Memory:
    """Memory of a rank.

    Args:
        tokens: tokens whose hidden states the rank computes.
        cached: tokens whose keys and values it ends with (all of them when the cache is gathered).
        received: tokens whose keys and values arrive in each layer.
        features: video tokens whose features it holds before selection.
        joined: bytes that it gathers in one layer that needs all tokens.
    """
    return Memory(
        weights=shape.weight_bytes,
        cache=cached * shape.kv_bytes * shape.layers,
        activations=tokens * shape.activation_bytes,
        exchanged=max(received * shape.kv_bytes, joined),
        embeddings=features * shape.hidden * shape.value_bytes,
    )


def check_memory(memory: list[Memory], devices: list[Device]) -> None:
    """Refuses a plan that does not fit.

    Raises:
        MemoryPlanError: with the rank that lacks most, what it would hold, and what it has, in GiB.
    """
    over = [need.total - device.memory_bytes for need, device in zip(memory, devices, strict=True)]
    rank = max(range(len(over)), key=over.__getitem__)
    if over[rank] > 0:
        raise MemoryPlanError(
            f"the plan does not fit: rank {rank} ({devices[rank].name}) would hold "
            f"{memory[rank].total / GIB:.2f} GiB ({memory[rank].describe()}) and has "
            f"{devices[rank].memory_bytes / GIB:.2f} GiB; {_advice(memory[rank], devices[rank])}"
        )


def _advice(need: Memory, device: Device) -> str:
    if need.weights >= device.memory_bytes:  # every rank holds all of them
        return "the weights alone are too much, however many ranks there are: take larger devices or a smaller model"
    return "use more ranks, keep fewer tokens, or leave the cache where it is (cache='sharded')"
