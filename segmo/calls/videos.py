"""How many frames the videos of a call have, read from its arguments before the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from segmo.compat.generation import arguments
from segmo.families import description_of


def frames_of(
    model: Any, inputs: Mapping[str, Any], generate: Callable[[], Mapping[str, Any]] = arguments
) -> list[int] | None:
    """Frames of each video of the batch, in order of the prompt; None where the arguments do not tell.

    What :func:`segmo.describe` was told comes first; then the grid; then the shape of the pixels; then that of what the
    encoder gave, whose rows are frames in families that encode each frame alone.

    Args:
        model: that is called.
        inputs: of the call.
        generate: tells what the ``generate`` around it was called with, which keeps the grid to itself once encoded.
            Asked where it is needed alone: finding it out takes longer than all else here.
    """
    ids = inputs.get("input_ids")
    if isinstance(ids, torch.Tensor) and ids.shape[-1] == 1:  # a step of decoding
        return None
    told = description_of(model).frames
    if callable(told):
        return [int(count) for count in told(inputs)]
    if told is not None:
        return [told] if isinstance(told, int) else list(told)
    grid, pixels = inputs.get("video_grid_thw"), inputs.get("pixel_values_videos")
    whole = generate() if grid is None else {}
    if isinstance(whole.get("video_grid_thw"), torch.Tensor):
        counts = [int(count) for count in whole["video_grid_thw"][:, 0].tolist()]
        return _for_beams(counts, whole.get("input_ids"), ids)
    if isinstance(grid, torch.Tensor):
        return [int(count) for count in grid[:, 0].tolist()]
    if isinstance(pixels, torch.Tensor) and pixels.dim() == 5:
        return [pixels.shape[1]] * pixels.shape[0]
    outputs = inputs.get("mm_encoder_outputs")
    video = outputs.get("video") if isinstance(outputs, Mapping) else None
    return None if video is None else _frames_of_features(video)


def _for_beams(counts: list[int], before: Any, now: Any) -> list[int] | None:
    """Frames of each video of the batch that ``generate`` made of a prompt's rows, one or several of each."""
    if not isinstance(before, torch.Tensor) or not isinstance(now, torch.Tensor) or len(before) == len(now):
        return counts
    if len(now) % len(before) or len(counts) % len(before):
        return None
    each, copies = len(counts) // len(before), len(now) // len(before)
    return [count for row in range(len(before)) for count in counts[row * each : (row + 1) * each] * copies]


def _frames_of_features(output: Any) -> list[int] | None:
    """Frames of each video from an encoder's output: its rows before the projector, shared out evenly."""
    rows, features = getattr(output, "last_hidden_state", None), getattr(output, "pooler_output", None)
    if not isinstance(rows, torch.Tensor) or rows.dim() < 3 or features is None:
        return None
    flat = isinstance(features, torch.Tensor) and features.dim() == 2
    videos = 1 if flat else len(features)
    if videos == 0 or rows.shape[0] % videos:
        return None
    return [rows.shape[0] // videos] * videos
