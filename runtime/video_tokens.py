"""The video tokens of a batch as the host knows them: where they stand, of which frame, which cell.

Legend: B batch, N prompt tokens, T video tokens of the batch, F frames of the batch, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.host import Array, give, read
from segmo.runtime.layout import begins_video
from segmo.runtime.video_runs import places


@dataclass(frozen=True)
class VideoTokens:
    """Video tokens in order, row after row; frames are counted through all rows.

    Attributes:
        at_T: place of each among the tokens of the batch, which are counted through all rows.
        frame_T, cell_T: frame and cell of each. number_T: its frame counted in its row alone.
        first_F: whether a frame is the first one of its video.
        row_F: row of each frame.
    """

    at_T: Array
    frame_T: Array
    cell_T: Array
    number_T: Array
    first_F: Array
    row_F: Array

    @classmethod
    def of(cls, frame_BN: Tensor, cell_BN: Tensor, encoded_BN: Tensor | None = None) -> VideoTokens:
        """Of a batch, from :func:`segmo.runtime.layout.video_layout`.

        Args:
            encoded_BN: False at video tokens that are not there: they are left out, and their frames still counted.
        """
        frame, cell, encoded = read(frame_BN, cell_BN, encoded_BN)
        first = [begins_video(*row) for row in zip(frame, cell, strict=True)]
        sizes = np.array([len(row) for row in first])
        before = sizes.cumsum() - sizes
        at = places(cell >= 0 if encoded is None else (cell >= 0) & encoded)
        number_T, cell_T = frame.reshape(-1)[at], cell.reshape(-1)[at]
        frame_T = number_T + before[at // frame.shape[1]]
        return cls(at, frame_T, cell_T, number_T, np.concatenate(first), np.arange(len(sizes)).repeat(sizes))

    @property
    def head_T(self) -> Array:
        """Whether a token is the first of its frame."""
        head_T: Array = np.diff(self.frame_T, prepend=-1) != 0
        return head_T


def are_neighbours(at: Array) -> bool:
    """Whether places follow each other, one by one."""
    return len(at) > 0 and bool((at[1:] - at[:-1] == 1).all())


def take(x_NH: Tensor, at: Array | Tensor) -> Tensor:
    """Rows of a tensor: a view of them where the host knows that they are neighbours."""
    if isinstance(at, Tensor):
        return x_NH.index_select(0, at)
    if are_neighbours(at):
        return x_NH[int(at[0]) : int(at[-1]) + 1]
    return x_NH.index_select(0, give(at, x_NH.device))


class Room:
    """Memory in which one block of rows after another is widened to fp32: fresh pages cost as much as the work on them.

    What it gave is lost with the next block.
    """

    def __init__(self, x_NH: Tensor) -> None:
        self._room_TH = x_NH.new_empty((0, x_NH.shape[1]), dtype=torch.float32)

    def _of(self, x_TH: Tensor) -> Tensor:
        if x_TH.shape[0] > self._room_TH.shape[0]:
            self._room_TH = self._room_TH.new_empty(x_TH.shape)
        return self._room_TH[: x_TH.shape[0]]

    def copy(self, x_TH: Tensor) -> Tensor:
        """A copy of the rows, which may be written to."""
        return self._of(x_TH).copy_(x_TH)

    def widen(self, x_TH: Tensor) -> Tensor:
        """The rows themselves where they are fp32, and otherwise a copy."""
        return x_TH if x_TH.dtype == torch.float32 else self.copy(x_TH)

    def dot(self, a_TH: Tensor, b_TH: Tensor) -> Tensor:
        """Dot product of each two rows, (T,); rows that were widened here are overwritten."""
        return torch.mul(a_TH, b_TH, out=self._of(a_TH)).sum(dim=-1)


def place(value_T: Tensor, at: Array, length: int, rest: float) -> Tensor:
    """Values of some tokens in their places among ``length``, and ``rest`` in the others."""
    out_N = torch.full((length,), rest, dtype=value_T.dtype, device=value_T.device)
    return out_N.index_copy_(0, give(at, value_T.device), value_T)
