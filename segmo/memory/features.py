"""The vision encoder's work on a part of a video.

Legend: F frames, V video tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from segmo.families import encoder_of

PIXELS, GRID, ENCODED = "pixel_values_videos", "video_grid_thw", "mm_encoder_outputs"
FURTHER = ("video_merge_sizes",)  # what some encoders want beside them, for each video
PATCHES = 8192  # patches that are encoded at a time, at most, unless a single frame has more
FRAMES = 8  # frames that are encoded at a time where they are not cut into patches beforehand


@torch.no_grad()
def encode(model: Any, pixels: Mapping[str, Any], trailing: int) -> tuple[Tensor, list[Tensor]]:
    """Features (V, H) of frames, and those of the same shape that are added again in the first layers.

    The encoders of all known families treat frames apart from each other, so parts give what the whole gives.

    Args:
        model: of a known family.
        pixels: of one video, as its processor makes them, or what the vision encoder made of them.
        trailing: features that a family puts behind a video; they come once, at the end.
    """
    if ENCODED in pixels:
        output = pixels[ENCODED]["video"]
        return _rows(output.pooler_output), [
            _rows(layer) for layer in getattr(output, "deepstack_features", None) or ()
        ]
    features: list[Tensor] = []
    layers: list[list[Tensor]] = []
    encoder: Any = encoder_of(model.base_model, "video")
    for part in _parts(pixels):
        moved = {name: tensor.to(model.device) for name, tensor in part.items()}
        output = encoder(**moved, return_dict=True)
        if trailing and features:
            features[-1] = features[-1][:-trailing]
        features.append(_rows(output.pooler_output))
        layers.append([_rows(layer) for layer in getattr(output, "deepstack_features", None) or ()])
    return torch.cat(features), [torch.cat(parts) for parts in zip(*layers, strict=True)]


def _rows(features: Any) -> Tensor:
    """(N, H) of what an encoder made: one tensor, or one for each video, whose frames some releases keep apart."""
    parts = (features,) if isinstance(features, Tensor) else features
    return torch.cat([part.flatten(0, -2) for part in parts])


def _parts(pixels: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    grid = pixels.get(GRID)
    if grid is None:  # (1, F, channels, height, width)
        for part in pixels[PIXELS].split(FRAMES, dim=1):
            yield {PIXELS: part}
        return
    frames, height, width = grid[0].tolist()
    rows = pixels[PIXELS].unflatten(0, (frames, height * width))
    for part in rows.split(max(1, PATCHES // (height * width))):
        further = {name: pixels[name] for name in FURTHER if name in pixels}
        yield {PIXELS: part.flatten(0, 1), GRID: torch.tensor([[len(part), height, width]]), **further}
