"""A model's vision encoder as rows in, rows out, whatever a family's pixels and outputs look like.

Legend: F frames of a video, R rows, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from segmo.families import Family
from segmo.runtime.encoded import VideoRows, place_rows


@dataclass(frozen=True)
class VideoCall:
    """The videos of one call of the encoder.

    Attributes:
        pixels: rows of pixels: patches for Qwen-VL, whole pictures for LLaVA-OneVision.
        grid: (videos, 3): frames, and the two sides of a frame in rows.
        pixel_rows: how frames lie in ``pixels``.
        token_rows: how frames lie in the features.
        extra: the other arguments of the call.
    """

    pixels: Tensor
    grid: Tensor
    pixel_rows: VideoRows
    token_rows: VideoRows
    extra: dict[str, Any]

    def only(self, videos: Sequence[int]) -> VideoCall:
        """The call for some of its videos."""
        if len(videos) == len(self.pixel_rows.frames):
            return self
        starts, sizes = self.pixel_rows.starts(), [f * r for f, r in _pairs(self.pixel_rows)]
        parts = [self.pixels[starts[v] : starts[v] + sizes[v]] for v in videos]
        rows = [only_rows(part, videos) for part in (self.pixel_rows, self.token_rows)]
        return replace(
            self, pixels=torch.cat(parts), grid=self.grid[list(videos)], pixel_rows=rows[0], token_rows=rows[1]
        )

    def spread(self, videos: Sequence[int], features: Tensor) -> Tensor:
        """Features of some videos among zeros for the others."""
        if len(videos) == len(self.token_rows.frames):
            return features
        owner = torch.repeat_interleave(
            torch.arange(len(self.token_rows.frames)),
            torch.tensor([f * r + self.token_rows.trailing for f, r in _pairs(self.token_rows)]),
        )
        rows = torch.isin(owner, torch.tensor(list(videos))).nonzero()[:, 0].to(features.device)
        return place_rows(features, rows, self.token_rows.total)


def _pairs(rows: VideoRows) -> list[tuple[int, int]]:
    return list(zip(rows.frames, rows.rows, strict=True))


def only_rows(rows: VideoRows, videos: Sequence[int]) -> VideoRows:
    """The rows of some of the videos."""
    return VideoRows(tuple(rows.frames[v] for v in videos), tuple(rows.rows[v] for v in videos), rows.trailing)


class Tower(torch.nn.Module):
    """The encoder of a model, up to the features that take the places of video tokens.

    As a module it takes rows of pixels and their grid and gives a tuple of features, (R, H) each, in prompt order.
    """

    model: Any
    base: Any
    original: Callable[..., Any]

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        # Not registered as modules: the model owns its encoder.
        original = model.base_model.get_video_features
        self.__dict__.update(model=model, base=model.base_model, original=getattr(original, "original", original))
        self.signature = inspect.signature(self.original)
        self.family = family
        self.patches = "video_grid_thw" in self.signature.parameters
        config = model.config
        self.video_token = int(getattr(config, "video_token_id", None) or config.video_token_index)
        self.width = int(config.get_text_config().hidden_size)
        self.extra: dict[str, Any] = {}
        self.outputs = 1
        self.made: Any = None

    def placeholder(self, ids: Tensor) -> int:
        """The token that stands for a video in a prompt: the video's own, or the image's where that is not there."""
        image = getattr(self.model.config, "image_token_id", None)
        return self.video_token if image is None or bool((ids == self.video_token).any()) else int(image)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoCall | None:
        """A call's videos; None for one without any."""
        bound = self.signature.bind_partial(*args, **kwargs).arguments
        given = {**bound, **bound.pop("kwargs", {})}
        pixels, grid = given.pop("pixel_values_videos", None), given.pop("video_grid_thw", None)
        if pixels is None:
            return None
        given.pop("return_dict", None)
        if self.patches:
            return self.call(pixels, grid, given)
        videos, frames = pixels.shape[:2]
        return self.call(pixels.flatten(0, 1), torch.tensor([[frames, 1, 1]] * videos), given)

    def call(self, pixels: Tensor, grid: Tensor, extra: dict[str, Any]) -> VideoCall:
        """The videos of rows of pixels with their grid."""
        sides = [(int(t), int(h) * int(w)) for t, h, w in grid.tolist()]
        frames = tuple(t for t, _ in sides)
        if self.patches:
            merged = int(self.model.config.vision_config.spatial_merge_size) ** 2
            cells = tuple(rows // merged for _, rows in sides)
        else:
            assert self.family.cells_per_frame is not None
            cells = (self.family.cells_per_frame(self.model.config),) * len(sides)
        token_rows = VideoRows(frames, cells, self.family.trailing)
        return VideoCall(pixels, grid, VideoRows(frames, tuple(rows for _, rows in sides)), token_rows, extra)

    def forward(self, pixels: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
        """Features of every frame of the grid, through the model's own method."""
        if self.patches:
            made = self.original(pixel_values_videos=pixels, video_grid_thw=grid, return_dict=True, **self.extra)
        else:
            shaped = torch.unflatten(pixels, 0, (len(grid), -1))
            made = self.original(pixel_values_videos=shaped, return_dict=True, **self.extra)
        self.made = type(made)
        levels = getattr(made, "deepstack_features", None) or ()
        features = tuple(_flat(item) for item in (made.pooler_output, *levels))
        self.outputs = len(features)
        return features

    def output(self, call: VideoCall, features: Sequence[Tensor]) -> Any:
        """What the model's own method gives, around these features."""
        first, *levels = (self._split(call, item) for item in features)
        more = {"deepstack_features": levels} if levels else {}
        return self.made(pooler_output=first, **more)

    def _split(self, call: VideoCall, features: Tensor) -> Any:
        if not self.patches:
            return torch.unflatten(features, 0, (len(call.grid), -1))
        return torch.split(features, [f * r for f, r in _pairs(call.token_rows)])

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of words, (Q, H)."""
        words: Tensor = self.base.get_input_embeddings()(ids)
        return words


def _flat(features: Any) -> Tensor:
    if isinstance(features, (list, tuple)):
        return torch.cat(list(features))
    rows: Tensor = features
    return rows.flatten(0, -2)
