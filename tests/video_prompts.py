"""Video prompts without a processor: ids, pixels and grids, laid out as the families' processors lay them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VIDEO, IMAGE, AUDIO, START, END = 5, 6, 4, 7, 8
CELLS = 4  # tokens of a frame where its family does not say another number
SIDE = 4  # patches of a frame's side; two by two are merged into a token

Prompt = dict[str, torch.Tensor]


def _words(seed: int) -> Callable[[int], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return lambda count: torch.randint(10, 90, (count,), generator=generator).tolist()


def text_and_video(
    frames: int, seed: int, *, tagged: bool, cells: int = CELLS, trailing: int = 0, token: int = VIDEO
) -> Prompt:
    """Text, a video with or without a time in front of every frame, a question."""
    words = _words(seed)
    video: list[int] = []
    for _ in range(frames):
        video += [*words(2), START, *[token] * cells, END] if tagged else [token] * cells
    video += [token] * trailing
    row = [*words(4), *(video if tagged else [START, *video, END]), *words(6)]
    ids = torch.tensor([row])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _held(frames: torch.Tensor) -> torch.Tensor:
    """Frames that hold still for three at a time, with a little noise, so that there are scenes to find."""
    return frames[torch.arange(len(frames)) // 3 * 3] + 0.05 * frames


def noise(seed: int, *size: int) -> torch.Tensor:
    return _held(torch.randn(size, generator=torch.Generator().manual_seed(seed)))


def grid_prompt(
    frames: int, seed: int, *, tagged: bool = False, temporal: int = 2, token: int = VIDEO, pooled: int = 1,
    planes: bool = False, **more: Any
) -> Prompt:  # fmt: skip
    """Patches of all frames in one row, with their grid (Qwen and many others).

    Args:
        frames, seed: of the video.
        tagged: a time stands in front of every frame.
        temporal: frames that one patch spans. pooled: those that the encoder joins afterwards.
        token: the placeholder.
        planes: a patch is (3, side, side), not flat.
        more: further tensors.
    """
    inputs = text_and_video(frames, seed, tagged=tagged, token=token)
    size = (3, 4, 4) if planes else (3 * temporal * 4 * 4,)
    inputs["mm_token_type_ids"] = torch.where(inputs["input_ids"] == token, 2, 0)
    inputs["pixel_values_videos"] = noise(seed, frames * pooled, SIDE * SIDE, *size).flatten(0, 1)
    inputs["video_grid_thw"] = torch.tensor([[frames * pooled, SIDE, SIDE]])
    return {**inputs, **more}


def frames_prompt(
    frames: int, seed: int, *, side: int = 16, cells: int = CELLS, tagged: bool = False, token: int = VIDEO,
    name: str = "pixel_values_videos", flat: bool = False, pooled: int = 1, **more: Any
) -> Prompt:  # fmt: skip
    """Whole frames, (1, frames, 3, side, side), or without the first dimension where ``flat``; the encoder makes one of
    each ``pooled`` of them.
    """
    inputs = text_and_video(frames, seed, tagged=tagged, cells=cells, token=token)
    pixels = noise(seed, frames * pooled, 3, side, side)
    inputs[name] = pixels if flat else pixels[None]
    return {**inputs, **more}


def patches_prompt(frames: int, seed: int, *, merged: bool, tagged: bool = True) -> Prompt:
    """Patches of each frame, (frames, patches, pixels), with their places (Gemma)."""
    inputs = text_and_video(frames, seed, tagged=tagged)
    inputs["mm_token_type_ids"] = torch.where(inputs["input_ids"] == VIDEO, 2, 0)
    side, size = (2, 3 * 8 * 8) if merged else (4, 3 * 4 * 4)
    inputs["pixel_values_videos"] = noise(seed, frames, side * side, size)
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).reshape(1, -1, 2)
    inputs["video_position_ids"] = place.repeat(frames, 1, 1)
    inputs["num_frames_per_video"] = torch.tensor([frames])
    return inputs


def packed_prompt(frames: int, seed: int) -> Prompt:
    """All frames' patches in one row, (1, 3, patch, patches), and every frame's size (MiniCPM-V)."""
    inputs = text_and_video(frames, seed, tagged=True)
    inputs["mm_token_type_ids"] = torch.where(inputs["input_ids"] == VIDEO, 2, 0)
    pixels = noise(seed, frames, 3, 4, 4 * 64).permute(1, 2, 0, 3).reshape(1, 3, 4, -1)
    return {**inputs, "pixel_values_videos": pixels, "target_sizes_videos": torch.tensor([[8, 8]] * frames)}


def pooled_prompt(frames: int, seed: int) -> Prompt:
    """Frames as patches, and which of them are pooled into a token."""
    inputs = text_and_video(frames, seed, tagged=True, token=IMAGE)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    inputs["pixel_values_videos"] = noise(seed, frames, SIDE * SIDE, 48)
    block = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    inputs["video_token_pooling"] = (block[None] + SIDE * SIDE * torch.arange(frames)[:, None, None]).flatten(0, 1)
    inputs["video_grids"] = torch.tensor([[frames, 2, 2]])
    return inputs
