"""Keys and values in eight bits: a whole number each, a scale for its token and one for its channel.

Channels differ much in size, above all those of keys, and tokens differ a little. So a channel is measured once, on the
first segment that is over, and every token since is brought to a range of its own behind that. What is stored never
needs to be stored anew: tokens are dropped and segments joined as they are.

A number that was stored is off by at most half a step, its token's scale times its channel's: the largest number of the
token, measured by channels, has 127 steps.

Legend: L decoder layers, G key/value heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 127
_LEAST = 1e-6  # of a scale: nothing is divided by zero, and fp16 can hold it


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` made of keys or values.

    Attributes:
        number: int8, (L, G, T, D).
        scale: of each token, fp16, (L, G, T, 1).
        channel: of each channel, fp32, (L, G, 1, D); the same one through a whole memory.
        dtype: that they had.
    """

    number: Tensor
    scale: Tensor
    channel: Tensor
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.number.device

    def dense(self) -> Tensor:
        """The keys or values, (L, G, T, D)."""
        return unpack(self.number, self.scale, self.channel, self.dtype)

    def only(self, index_K: Tensor | slice) -> Packed:
        """Those of some tokens."""
        return Packed(self.number[:, :, index_K], self.scale[:, :, index_K], self.channel, self.dtype)

    def to(self, device: torch.device) -> Packed:
        """On a device."""
        return Packed(self.number.to(device), self.scale.to(device), self.channel.to(device), self.dtype)


States = Tensor | Packed


def channels(states: Tensor) -> Tensor:
    """Size of each channel, fp32, (L, G, 1, D)."""
    return states.float().abs().amax(2, keepdim=True).clamp_(min=_LEAST)


def pack(states: Tensor, channel: Tensor) -> Packed:
    """Keys or values (L, G, T, D) in eight bits, with channels of a size that :func:`channels` measured."""
    relative = states.float() / channel
    scale = (relative.abs().amax(3, keepdim=True) / STEPS).clamp_(min=_LEAST).half()
    number = (relative / scale.float()).round_().clamp_(-STEPS, STEPS).to(torch.int8)
    return Packed(number, scale, channel, states.dtype)


def unpack(number: Tensor, scale: Tensor, channel: Tensor, dtype: torch.dtype) -> Tensor:
    """What :func:`pack` was given, nearly; any leading dimensions."""
    return (number.float() * scale.float() * channel).to(dtype)


def dense(states: States) -> Tensor:
    """Keys or values as the model takes them, (L, G, T, D)."""
    return states.dense() if isinstance(states, Packed) else states


def joined(parts: Sequence[States]) -> States:
    """Successive tokens' as one; eight bits only where all of them are."""
    if all(isinstance(part, Packed) for part in parts):
        packed = [part for part in parts if isinstance(part, Packed)]
        first = packed[0]
        number, scale = (torch.cat([getattr(part, name) for part in packed], 2) for name in ("number", "scale"))
        return Packed(number, scale, first.channel, first.dtype)
    return torch.cat([dense(part) for part in parts], 2)


def only(states: States, index_K: Tensor | slice) -> States:
    """Those of some tokens."""
    return states.only(index_K) if isinstance(states, Packed) else states[:, :, index_K]


def token_bytes(states: States) -> int:
    """Bytes of one token, without those of the channels, which all segments share."""
    if isinstance(states, Packed):
        return token_bytes(states.number) + token_bytes(states.scale)
    layers, groups, _, size = states.shape
    return layers * groups * size * states.element_size()
