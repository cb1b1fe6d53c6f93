"""Position ids of a prompt that grows: a part's own are asked of the model, and its place in the whole is added.

transformers counts positions for whole prompts. A prompt that goes on for hours cannot be counted anew with each part,
and need not be: the positions of a part with text in it (Qwen3-VL's timestamps) are those that it has alone, moved to
where the part begins. In a video without text inside (Qwen2-VL, Qwen2.5-VL) a frame's place in time is counted from
the start of the video, and its cells are placed alike in every frame.

Legend: T tokens, F frames, R rows of position ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VIDEO_TYPE = 2  # in mm_token_type_ids


class Positions:
    """Counts on behind what has been placed.

    Args:
        model: of a known family.
        mrope: it has M-RoPE; otherwise positions are 1-D.
        intervals: further arguments of the model's ``get_rope_index`` that belong to the video.

    Attributes:
        next: position of a text token that would come now, in all rows.
        start: position at which the video begins.
        frames: of the video that are placed.
    """

    def __init__(self, model: Any, mrope: bool, intervals: dict[str, Any]) -> None:
        self.model, self.mrope, self.intervals = model, mrope, intervals
        self.next = self.start = self.frames = 0

    @property
    def rows(self) -> int:
        """R."""
        return 3 if self.mrope else 1

    def text(self, count: int) -> Tensor:
        """Positions of text that comes now, (R, count); it is not placed."""
        return torch.arange(self.next, self.next + count).expand(self.rows, -1)

    def begin(self, count: int) -> Tensor:
        """Places the text in front of the video, (R, count)."""
        position_RT = self.text(count)
        self.next = self.start = self.next + count
        return position_RT

    def add(self, video_T: Tensor, grid: tuple[int, int, int] | None) -> Tensor:
        """Places a part of the video, (R, T).

        Args:
            video_T: True at video tokens.
            grid: patches of the part: time, height, width; None without M-RoPE.
        """
        if not self.mrope:
            return self.begin_after(video_T.shape[0])
        assert grid is not None
        if bool(video_T.all()):
            return self._solid(grid)
        position_RT = self._asked(video_T, grid)
        found = position_RT[:, :-1] + self.next
        self.next += int(position_RT[0, -1])
        self.frames += grid[0]
        return found

    def begin_after(self, count: int) -> Tensor:
        """Places tokens that count as text does, (R, count)."""
        position_RT = self.text(count)
        self.next += count
        return position_RT

    def _solid(self, grid: tuple[int, int, int]) -> Tensor:
        """A part without text inside; what is asked for is a frame alone, and the frames with one cell each."""
        merge = self.model.config.vision_config.spatial_merge_size
        frames, height, width = grid
        cells = height // merge * (width // merge)
        space = self._asked(torch.ones(cells, dtype=torch.bool), (1, height, width))
        total = self.frames + frames
        time = self._asked(torch.ones(total, dtype=torch.bool), (total, merge, merge))
        position = space[:, None, :-1].repeat(1, frames, 1)
        position[0] += time[0, self.frames : total, None]
        self.frames = total
        self.next = self.start + max(int(space[0, -1]), int(time[0, -1]))
        return position.flatten(1) + self.start

    def _asked(self, video_T: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """What the model gives a prompt of this part and one text token, (R, T + 1)."""
        type_N = torch.cat([torch.where(video_T, VIDEO_TYPE, 0), torch.zeros(1, dtype=torch.long)])[None]
        found: Tensor = self.model.base_model.get_rope_index(
            torch.zeros_like(type_N),
            mm_token_type_ids=type_N,
            video_grid_thw=torch.tensor([grid]),
            attention_mask=torch.ones_like(type_N),
            **self.intervals,
        )[0]
        return found[:, 0]
