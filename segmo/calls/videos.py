"""What is known of a call's videos before the graph, read from its arguments: their frames, and cells left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from segmo.compat.generation import arguments
from segmo.families import description_of

COMPRESSION = "video_compression_mask"


def frames_of(
    model: Any, inputs: Mapping[str, Any], generate: Callable[[], Mapping[str, Any]] = arguments
) -> tuple[list[int] | None, int]:
    """Frames of each video of the batch, in order of the prompt, None where the arguments do not tell; and of how many
    rows in a row, which ``generate`` made of one of its prompts, they tell once: of one row unless it made several.

    What :func:`segmo.describe` was told comes first; then the grid or the count beside the pixels; then the shape of
    the pixels; then that of what the encoder gave, whose rows are frames in families that encode each frame alone.

    Args:
        model: that is called.
        inputs: of the call.
        generate: tells what the ``generate`` around it was called with, which keeps pixels and grid to itself once they
            are encoded. Asked where it is needed alone: finding it out takes longer than all else here.
    """
    ids = inputs.get("input_ids")
    if isinstance(ids, torch.Tensor) and ids.shape[-1] == 1:  # a step of decoding
        return None, 1
    told = description_of(model).frames
    if callable(told):
        return [int(count) for count in told(inputs)], 1
    if told is not None:
        return [told] if isinstance(told, int) else list(told), 1
    counts = _counted(inputs)
    if counts is not None:
        return counts, 1
    whole = generate()
    counts = _counted(whole)
    if counts is not None:
        before, now = _rows(whole), _rows(inputs)
        return (counts, now // before) if before and now % before == 0 else (None, 1)
    outputs = inputs.get("mm_encoder_outputs")
    video = outputs.get("video") if isinstance(outputs, Mapping) else None
    return None if video is None else _frames_of_features(video), 1


def _rows(inputs: Mapping[str, Any]) -> int:
    """Rows of a batch; 0 where it is not known."""
    prompt = inputs.get("input_ids")
    prompt = inputs.get("inputs_embeds") if prompt is None else prompt
    return len(prompt) if isinstance(prompt, torch.Tensor) else 0


def _counted(inputs: Mapping[str, Any]) -> list[int] | None:
    """Frames of each video as a processor tells them: beside the pixels, first in the grid, or by the pixels' shape."""
    count = inputs.get("num_frames_per_video")
    if isinstance(count, (torch.Tensor, list)):
        return [int(number) for number in torch.as_tensor(count).flatten().tolist()]
    grids = (inputs.get(name) for name in ("video_grid_thw", "video_grids"))
    grid = next((grid for grid in grids if isinstance(grid, torch.Tensor)), None)
    if grid is not None:
        return [int(count) for count in grid[:, 0].tolist()]
    pixels = inputs.get("pixel_values_videos")
    if isinstance(pixels, torch.Tensor) and pixels.dim() == 5:
        return [pixels.shape[1]] * pixels.shape[0]
    return None


def cells_of(inputs: Mapping[str, Any], generate: Callable[[], Mapping[str, Any]] = arguments) -> torch.Tensor | None:
    """The cell of its frame that each video token shows, (V,) int64, where the processor left cells out (VideoLLaMA3).

    None where every frame has all of its cells, or where it is not known how many those are.

    Args:
        inputs, generate: as for :func:`frames_of`.
    """
    mask = inputs.get(COMPRESSION)
    if not isinstance(mask, torch.Tensor):
        return None
    known = inputs if inputs.get("video_grid_thw") is not None else generate()
    grid, merge = known.get("video_grid_thw"), known.get("video_merge_sizes")
    if not isinstance(grid, torch.Tensor) or not isinstance(merge, torch.Tensor):
        return None
    grid, merge = grid.cpu(), merge.cpu()
    cells = (grid[:, 1] * grid[:, 2] // merge**2).tolist()
    frames = grid[:, 0].tolist()
    cell_M = torch.cat([torch.arange(c).repeat(f) for c, f in zip(cells, frames, strict=True)])
    return cell_M[mask.cpu()] if cell_M.shape == mask.shape else None


def _frames_of_features(output: Any) -> list[int] | None:
    """Frames of each video from an encoder's output: its rows before the projector, shared out by the features."""
    rows, features = getattr(output, "last_hidden_state", None), getattr(output, "pooler_output", None)
    if not isinstance(rows, torch.Tensor) or rows.dim() < 3 or features is None:
        return None
    flat = isinstance(features, torch.Tensor) and features.dim() == 2
    sizes = [1] if flat else [each.numel() for each in features]
    total, frames = sum(sizes), rows.shape[0]
    if total == 0 or any(size * frames % total for size in sizes):
        return None
    return [size * frames // total for size in sizes]
