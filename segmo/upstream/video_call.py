"""The videos of one call of a vision encoder as rows of pixels, and what goes to the encoder beside them.

Legend: F frames of a video, R rows, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from segmo.runtime.encoded import VideoRows, place_rows


@dataclass(frozen=True)
class Beside:
    """What goes to an encoder beside the pixels.

    Attributes:
        frames: of each video.
        per_frame: arguments with a row for each frame of all videos, by name.
        per_video: arguments with a row for each video.
        plain: arguments that are the same whichever frames there are.
    """

    frames: tuple[int, ...]
    per_frame: Mapping[str, Tensor] = field(default_factory=dict)
    per_video: Mapping[str, Tensor] = field(default_factory=dict)
    plain: Mapping[str, Any] = field(default_factory=dict)

    def of(self, kept: Sequence[Tensor]) -> Beside:
        """The same for some frames of each video."""
        starts = [sum(self.frames[:video]) for video in range(len(self.frames))]
        chosen = torch.cat([start + frame_M for start, frame_M in zip(starts, kept, strict=True)])
        per_frame = {name: value[chosen.to(value.device)] for name, value in self.per_frame.items()}
        return replace(self, frames=tuple(len(frame_M) for frame_M in kept), per_frame=per_frame)

    def only(self, videos: Sequence[int]) -> Beside:
        """The same for some of the videos, with all of their frames."""
        nothing = torch.empty(0, dtype=torch.long)
        found = self.of([torch.arange(f) if v in videos else nothing for v, f in enumerate(self.frames)])
        per_video = {name: value[list(videos)] for name, value in self.per_video.items()}
        return replace(found, frames=tuple(self.frames[v] for v in videos), per_video=per_video)


@dataclass(frozen=True)
class VideoCall:
    """The videos of one call of the encoder.

    Attributes:
        pixels: rows of pixels: patches, or whole pictures, or all patches of a picture.
        beside: what goes to the encoder with them.
        pixel_rows: how frames lie in ``pixels``.
        token_rows: how frames lie in the features.
    """

    pixels: Tensor
    beside: Beside
    pixel_rows: VideoRows
    token_rows: VideoRows

    def only(self, videos: Sequence[int]) -> VideoCall:
        """The call for some of its videos."""
        if len(videos) == len(self.pixel_rows.frames):
            return self
        starts, sizes = self.pixel_rows.starts(), [f * r for f, r in pairs(self.pixel_rows)]
        parts = [self.pixels[starts[v] : starts[v] + sizes[v]] for v in videos]
        rows = [only_rows(part, videos) for part in (self.pixel_rows, self.token_rows)]
        return VideoCall(torch.cat(parts), self.beside.only(videos), rows[0], rows[1])

    def spread(self, videos: Sequence[int], features: Tensor) -> Tensor:
        """Features of some videos among zeros for the others."""
        if len(videos) == len(self.token_rows.frames):
            return features
        owner = torch.repeat_interleave(torch.arange(len(self.token_rows.frames)), torch.tensor(self.tokens()))
        rows = torch.isin(owner, torch.tensor(list(videos))).nonzero()[:, 0].to(features.device)
        return place_rows(features, rows, self.token_rows.total)

    def tokens(self) -> list[int]:
        """Features of each video."""
        return [f * r + self.token_rows.trailing for f, r in pairs(self.token_rows)]

    def like(self, frames: Sequence[int]) -> VideoCall:
        """A call like this one: videos of so many frames, each frame the first of this call."""
        first, count = self.pixel_rows.rows[0], len(frames)
        pixels = self.pixels[:first].repeat(sum(frames), *[1] * (self.pixels.dim() - 1))
        per_frame = {name: value[[0] * sum(frames)] for name, value in self.beside.per_frame.items()}
        per_video = {name: value[[0] * count] for name, value in self.beside.per_video.items()}
        beside = Beside(tuple(frames), per_frame, per_video, self.beside.plain)
        tokens = VideoRows(beside.frames, self.token_rows.rows[:1] * count, self.token_rows.trailing)
        return VideoCall(pixels, beside, VideoRows(beside.frames, (first,) * count), tokens)


def pairs(rows: VideoRows) -> list[tuple[int, int]]:
    """Frames of each video, and rows of each of its frames."""
    return list(zip(rows.frames, rows.rows, strict=True))


def only_rows(rows: VideoRows, videos: Sequence[int]) -> VideoRows:
    """The rows of some of the videos."""
    return VideoRows(tuple(rows.frames[v] for v in videos), tuple(rows.rows[v] for v in videos), rows.trailing)
