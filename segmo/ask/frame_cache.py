"""Features frame by frame, so that another choice of frames encodes only those that were not seen before.

Legend: V video tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segmo.ask.encode import Encoded

FrameTensors = Mapping[str, Tensor]


def split(encoded: Encoded, frames: int, trailing: int) -> list[FrameTensors]:
    """Encoded frames one by one, each on the CPU with the tokens that stand behind all."""
    body = encoded.pooled.shape[-2] - trailing
    pooled, end = torch.split(encoded.pooled, [body, trailing], dim=-2)
    whole = {"pooled": pooled, **{f"deepstack.{number}": layer for number, layer in enumerate(encoded.deepstack)}}
    parts = {name: layer.chunk(frames, dim=-2) for name, layer in whole.items()}
    return [
        {name: _alone(layers[frame]) for name, layers in parts.items()} | {"end": _alone(end)}
        for frame in range(frames)
    ]


def join(pieces: Sequence[FrameTensors]) -> Encoded:
    """The inverse of :func:`split`, for frames of any number of calls."""

    def row(name: str) -> Tensor:
        return torch.cat([piece[name] for piece in pieces], dim=-2)

    layers = sorted((name for name in pieces[0] if name.startswith("deepstack.")), key=lambda n: int(n.split(".")[1]))
    return Encoded(torch.cat([row("pooled"), pieces[-1]["end"]], dim=-2), tuple(row(name) for name in layers))


def _alone(part: Tensor) -> Tensor:
    """On the CPU in memory of its own, so that it keeps no other frame's features alive."""
    return part.detach().cpu().clone(memory_format=torch.contiguous_format)
