"""A video of which only some frames were encoded: rows of pixels and features, and the rules for what is missing.

The features of a frame that was not encoded are zeros in its tokens' places, which no encoder gives (and zeros would
carry nothing if one did). That way what is missing is told by the features themselves, wherever they are copied to.

Legend: B batch, N prompt tokens, T tokens of a row without gaps, R rows, P encoded frames, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segmo.runtime.host import fetch, send
from segmo.runtime.layout import frame_heads

Scan = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
FindScenes = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class VideoRows:
    """How the videos of a call lie in the rows of an array, one video after another, frame after frame.

    Attributes:
        frames: frames of each video.
        rows: rows of one frame of each video.
        trailing: rows behind each video's last frame that belong to no frame and always stay.
    """

    frames: tuple[int, ...]
    rows: tuple[int, ...]
    trailing: int = 0

    @property
    def total(self) -> int:
        """R: rows of all videos."""
        return sum(f * r + self.trailing for f, r in zip(self.frames, self.rows, strict=True))

    def starts(self) -> list[int]:
        """First row of each video."""
        sizes = [f * r + self.trailing for f, r in zip(self.frames, self.rows, strict=True)]
        return [sum(sizes[:video]) for video in range(len(sizes))]

    def owner(self) -> Tensor:
        """Frame of each row, counted through all videos, -1 for trailing ones, (R,) int64."""
        parts, first = [], 0
        for frames, rows in zip(self.frames, self.rows, strict=True):
            parts.append(torch.arange(first, first + frames).repeat_interleave(rows))
            parts.append(torch.full((self.trailing,), -1))
            first += frames
        return torch.cat(parts)

    def of(self, kept: Sequence[Tensor]) -> Tensor:
        """The rows of some frames of each video, and the trailing ones, ascending, int64."""
        parts = []
        for start, frames, rows, frame_M in zip(self.starts(), self.frames, self.rows, kept, strict=True):
            parts.append((start + frame_M[:, None] * rows + torch.arange(rows)).flatten())
            parts.append(torch.arange(self.trailing) + start + frames * rows)
        return torch.cat(parts)


def place_rows(kept: Tensor, rows: Tensor, total: int) -> Tensor:
    """(total, H) with ``kept`` in the given rows and zeros in the others."""
    return kept.new_zeros((total, *kept.shape[1:])).index_copy_(0, rows, kept)


def encoded_tokens(embeds_BNH: Tensor, cell_BN: Tensor) -> Tensor:
    """False at video tokens whose frame was not encoded, (B, N) bool, in the host's memory."""
    return fetch([(embeds_BNH != 0).any(dim=-1)])[0] | (cell_BN < 0)


def without_gaps(frame_N: Tensor, cell_N: Tensor, encoded_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A row as if the missing frames had never been in the prompt.

    Returns:
        Positions of the tokens that are left (T,), their frames counted anew (T,) with ``SINK`` and ``QUERY`` kept, and
        the old numbers of the encoded frames (P,). Text goes with the encoded frame behind it, and a token that ends a
        video whose last frame is missing (LLaVA-OneVision's newline) with the one in front.
    """
    index_T = encoded_N.nonzero()[:, 0]
    head_F = frame_heads(frame_N, cell_N)
    present_P = frame_N[head_F[encoded_N[head_F]]]
    old_T = frame_N[index_T]
    behind_T = torch.searchsorted(present_P, old_T)
    before_T = torch.searchsorted(present_P, old_T, right=True) - 1
    new_T = torch.where(cell_N[index_T] < 0, behind_T, before_T).clamp(min=0, max=max(present_P.numel() - 1, 0))
    return index_T, torch.where(old_T < 0, old_T, new_T), present_P


def scan_encoded(
    scan: Scan, embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, encoded_BN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``scan`` over the encoded frames: the frame before a frame is the last encoded one before it.

    What is missing is not new (novelty 0), starts no scene (similarity 1) and is no part of the mean.
    """
    if bool(encoded_BN.all()):
        return scan(embeds_BNH, frame_BN, cell_BN)
    novelty_BN = torch.zeros(frame_BN.shape, device=embeds_BNH.device, dtype=torch.float32)
    similarity_BN = torch.ones_like(novelty_BN)
    mean_BH = torch.zeros_like(embeds_BNH[:, 0], dtype=torch.float32)
    for row in range(frame_BN.shape[0]):
        index_T, frame_T, _ = without_gaps(frame_BN[row], cell_BN[row], encoded_BN[row])
        found = scan(embeds_BNH[row, index_T][None], frame_T[None], cell_BN[row, index_T][None])
        novelty_BN[row, index_T], similarity_BN[row, index_T], mean_BH[row] = (x[0] for x in found)
    return novelty_BN, similarity_BN, mean_BH


def find_encoded_scenes(
    find_scenes: FindScenes,
    similarity_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    encoded_BN: Tensor,
    max_scenes: int,
) -> Tensor:
    """``find_scenes`` over the encoded frames; a missing frame belongs to the scene of the encoded one before it."""
    if bool(encoded_BN.all()):
        return find_scenes(similarity_BN, frame_BN, cell_BN, max_scenes)
    (known_BN,), scene_BN = fetch([similarity_BN]), frame_BN.clone()
    for row in range(frame_BN.shape[0]):
        inside_N = frame_BN[row] >= 0
        index_T, frame_T, present_P = without_gaps(frame_BN[row], cell_BN[row], encoded_BN[row])
        if present_P.numel() == 0:
            scene_BN[row, inside_N] = 0
            continue
        cell_T = cell_BN[row, index_T]
        scene_T = find_scenes(known_BN[row, index_T][None], frame_T[None], cell_T[None], max_scenes)[0]
        scene_P = scene_T[frame_heads(frame_T, cell_T)]
        at = torch.searchsorted(present_P, frame_BN[row, inside_N], right=True) - 1
        scene_BN[row, inside_N] = scene_P[at.clamp(min=0)]
    return send(scene_BN, similarity_BN.device)
