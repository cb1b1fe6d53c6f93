"""How frames lie in what a family hands to its vision encoder: told from the encoder's arguments, not from its name.

Every shape takes the arguments of a call apart into rows of pixels, what belongs to a frame, and what belongs to a
video; and puts them together again for any of the frames.

Legend: V videos, F frames of all videos, P patches of a frame, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from segmo.errors import PromptError

VIDEOS, PICTURES = "pixel_values_videos", "pixel_values"
Arguments = dict[str, Any]
# Frames of each video in the prompt, and pictures of each of its frames, for shapes that do not tell: called with the
# number of all pictures.
InPrompt = Callable[[int], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Taken:
    """What a call's arguments were taken apart into.

    Attributes:
        pixels: rows of pixels, frame after frame.
        frames: of each video.
        rows: rows of pixels of one frame, for each video.
        per_frame, per_video: further arguments, by name.
        cells: tokens of one frame, for each video; None where the prompt tells.
    """

    pixels: Tensor
    frames: tuple[int, ...]
    rows: tuple[int, ...]
    per_frame: Arguments
    per_video: Arguments
    cells: tuple[int, ...] | None = None


class Shape(Protocol):
    """One way of handing frames over."""

    @property
    def joint(self) -> bool:
        """Whether videos of different lengths go into one call."""

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """Takes the arguments of a call apart; those that are understood are removed from ``given``."""

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """The arguments of a call for rows of pixels, frames of each video, and what goes with either."""


@dataclass(frozen=True)
class Grid:
    """Patches of all videos in one array, with their grid: Qwen-VL and most others.

    Attributes:
        side: patches that make one token, along a side; None where an argument says it for each video.
        temporal: frames of the grid that make one of the language model's (ERNIE).
    """

    side: int | None
    temporal: int = 1
    joint: ClassVar[bool] = True
    GRID: ClassVar[str] = "video_grid_thw"
    SIDES: ClassVar[str] = "video_merge_sizes"

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """See :class:`Shape`."""
        pixels, grid = given.pop(VIDEOS), given.pop(self.GRID)
        per_video = {self.GRID: grid, **{name: given.pop(name) for name in (self.SIDES,) if name in given}}
        sides = per_video[self.SIDES].tolist() if self.side is None else [self.side] * len(grid)
        shapes = [(int(t), int(h) * int(w)) for t, h, w in grid.tolist()]
        for count, _ in shapes:
            if count % self.temporal:
                raise PromptError(
                    f"a video of {count} pictures cannot be told into frames of {self.temporal}; give it an even number"
                )
        frames = tuple(count // self.temporal for count, _ in shapes)
        rows = tuple(self.temporal * size for _, size in shapes)
        cells = tuple(size // side**2 for (_, size), side in zip(shapes, sides, strict=True))
        return Taken(pixels, frames, rows, {}, per_video, cells)

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """See :class:`Shape`."""
        grid = beside[self.GRID].clone()
        grid[:, 0] = torch.tensor(frames) * self.temporal
        return {**beside, VIDEOS: pixels, self.GRID: grid}


@dataclass(frozen=True)
class GridOfFrames:
    """Patches of all frames in one array, with a row of the grid for each frame (Kimi's chunks)."""

    joint: ClassVar[bool] = True

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """See :class:`Shape`."""
        pixels, grid = given.pop(VIDEOS), given.pop(Grid.GRID)
        frames = _pictures(in_prompt(len(grid)))
        return Taken(pixels, frames, _alike(grid.prod(1), frames), {Grid.GRID: grid}, {})

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """See :class:`Shape`."""
        return {VIDEOS: pixels, **beside}


@dataclass(frozen=True)
class Pictures:
    """Whole pictures: (V, pictures, C, height, width), or (pictures, C, height, width) of all videos.

    Attributes:
        name: of the argument.
        pictures: that make one frame. The last frame of several videos in one array may have fewer, the last of which
            the model repeats.
        flat: whether the array has no dimension for videos.
    """

    name: str
    pictures: int
    flat: bool

    @property
    def joint(self) -> bool:
        """See :class:`Shape`."""
        return self.flat

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """See :class:`Shape`."""
        pixels = given.pop(self.name)
        if not self.flat:
            frames = (pixels.shape[1],) * pixels.shape[0]
            return Taken(pixels.flatten(0, 1), frames, (1,) * len(frames), {}, {})
        missing = -len(pixels) % self.pictures
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, *pixels.shape[1:])])
        frames = _pictures(in_prompt(len(pixels) // self.pictures))
        return Taken(pixels, frames, (self.pictures,) * len(frames), {}, {})

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """See :class:`Shape`."""
        return {self.name: pixels if self.flat else torch.unflatten(pixels, 0, (len(frames), -1))}


@dataclass(frozen=True)
class PaddedPictures:
    """Pictures of each row of the batch, (B, pictures, C, height, width); empty ones fill up shorter rows (SmolVLM)."""

    joint: ClassVar[bool] = True
    MASK: ClassVar[str] = "pixel_attention_mask"

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """See :class:`Shape`."""
        pixels, mask = given.pop(PICTURES).flatten(0, 1), given.pop(self.MASK, None)
        there = (pixels != 0).flatten(1).any(1)
        frames = _pictures(in_prompt(int(there.sum())))
        per_frame = {} if mask is None else {self.MASK: mask.flatten(0, 1)[there]}
        return Taken(pixels[there], frames, (1,) * len(frames), per_frame, {})

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """See :class:`Shape`."""
        return {PICTURES: pixels[None], **{name: value[None] for name, value in beside.items()}}


@dataclass(frozen=True)
class PatchesOfFrames:
    """Patches of each frame, (F, P, pixels), with their places, and the number of each video's frames (Gemma)."""

    joint: ClassVar[bool] = True
    COUNT: ClassVar[str] = "num_frames_per_video"
    PLACES: ClassVar[str] = "video_position_ids"

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """See :class:`Shape`."""
        frames = tuple(given.pop(self.COUNT).tolist())
        return Taken(given.pop(VIDEOS), frames, (1,) * len(frames), {self.PLACES: given.pop(self.PLACES)}, {})

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """See :class:`Shape`."""
        return {VIDEOS: pixels, **beside, self.COUNT: torch.tensor(list(frames), device=pixels.device)}


@dataclass(frozen=True)
class PackedPatches:
    """Patches of all pictures side by side, (1, C, side, patches x side), and every picture's size (MiniCPM-V).

    A frame is one picture, or several where it is cut into slices.
    """

    joint: ClassVar[bool] = True
    SIZES: ClassVar[str] = "target_sizes_videos"

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """See :class:`Shape`."""
        pixels, sizes = given.pop(VIDEOS), given.pop(self.SIZES)
        if len(pixels) != 1:
            raise PromptError(f"{VIDEOS} has {len(pixels)} rows; frames are told apart where all are packed into one")
        patches = torch.unflatten(pixels[0], 2, (-1, pixels.shape[2])).permute(2, 0, 1, 3)
        found = in_prompt(len(sizes))
        frames, slices = tuple(count for count, _ in found), {pictures for _, pictures in found}
        if len(slices) > 1:
            raise PromptError(f"the frames of this prompt's videos have {sorted(slices)} slices, not one number")
        size_F = sizes.unflatten(0, (sum(frames), -1))
        rows = _alike(size_F.prod(2).sum(1), frames)
        return Taken(patches, frames, rows, {self.SIZES: size_F}, {})

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """See :class:`Shape`."""
        return {VIDEOS: pixels.permute(1, 2, 0, 3).flatten(2)[None], self.SIZES: beside[self.SIZES].flatten(0, 1)}


@dataclass(frozen=True)
class PooledPatches:
    """Patches of each frame, (F, P, pixels), and which patches of all frames make each token (Molmo)."""

    joint: ClassVar[bool] = True
    POOLING: ClassVar[str] = "video_token_pooling"
    GRIDS: ClassVar[str] = "video_grids"

    def take(self, given: Arguments, in_prompt: InPrompt) -> Taken:
        """See :class:`Shape`."""
        pixels, pooling, grids = given.pop(VIDEOS), given.pop(self.POOLING), given.pop(self.GRIDS)
        frames, cells = tuple(grids[:, 0].tolist()), tuple(grids[:, 1:].prod(1).tolist())
        if len(set(cells)) > 1:
            raise PromptError(f"the frames of this prompt's videos have {sorted(set(cells))} tokens, not one number")
        of_frame = torch.unflatten(pooling, 0, (sum(frames), -1))
        first = torch.arange(sum(frames), device=pooling.device)[:, None, None] * pixels.shape[1]
        within = torch.where(of_frame < 0, of_frame, of_frame - first)  # -1 stands for no patch
        return Taken(pixels, frames, (1,) * len(frames), {self.POOLING: within}, {self.GRIDS: grids}, cells)

    def put(self, pixels: Tensor, frames: Sequence[int], beside: Arguments) -> Arguments:
        """See :class:`Shape`."""
        within, grids = beside[self.POOLING], beside[self.GRIDS].clone()
        first = torch.arange(len(within), device=within.device)[:, None, None] * pixels.shape[1]
        grids[:, 0] = torch.tensor(frames)
        pooling = torch.where(within < 0, within, within + first).flatten(0, 1)
        return {VIDEOS: pixels, self.POOLING: pooling, self.GRIDS: grids}


def _pictures(found: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Frames of each video, where each picture is one."""
    return tuple(frames * pictures for frames, pictures in found)


def _alike(size_F: Tensor, frames: Sequence[int]) -> tuple[int, ...]:
    """The size of a frame of each video.

    Raises:
        PromptError: the frames of a video have several.
    """
    found = []
    for part in torch.split(size_F, list(frames)):
        if (part != part[0]).any():
            raise PromptError(
                f"the frames of one video have {sorted(set(part.tolist()))} patches; frames are chosen before the "
                "encoder where all have one size"
            )
        found.append(int(part[0]))
    return tuple(found)


def shape_of(parameters: Collection[str], config: Any, pixels: Mapping[str, Tensor]) -> Shape | None:
    """How a model hands frames to its encoder; None where that cannot be told.

    Args:
        parameters: names of the encoder's arguments.
        config: of the model.
        pixels: the pixels of a call, if there is one; pictures are told apart by their dimensions.
    """
    vision = getattr(config, "vision_config", None)
    if Grid.GRID in parameters:
        if getattr(vision, "merge_kernel_size", None) is not None:
            return GridOfFrames()
        sides = [getattr(vision, name, None) for name in ("spatial_merge_size", "merge_size")]
        side = next((value for value in sides if isinstance(value, int)), None)
        known = side is not None or Grid.SIDES in parameters
        if getattr(vision, "temporal_merge_size", 1) not in (1, 2) or not known:
            return None
        return Grid(None if Grid.SIDES in parameters else side, getattr(vision, "temporal_merge_size", 1))
    for argument, shape in _BY_ARGUMENT.items():
        if argument in parameters:
            return shape
    name = VIDEOS if VIDEOS in parameters else PICTURES
    found = pixels.get(name)
    dims = 5 if found is None else found.dim()
    if name not in parameters or dims not in (4, 5):
        return None
    return Pictures(name, int(getattr(vision, "video_temporal_patch_size", None) or 1), flat=dims == 4)


_BY_ARGUMENT: dict[str, Shape] = {
    PatchesOfFrames.COUNT: PatchesOfFrames(),
    PackedPatches.SIZES: PackedPatches(),
    PooledPatches.POOLING: PooledPatches(),
    PaddedPictures.MASK: PaddedPictures(),
}
