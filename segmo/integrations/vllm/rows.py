"""What rides along with each feature of a cut video: its place and its position, as further channels.

vLLM hands a model's features on to ``recompute_mrope_positions``, which takes the channels off again. Features may be
in bf16, which holds whole numbers up to 256 exactly, so numbers are written in digits.

Legend: L rows of a video's range in the prompt (its kept tokens, and text between them), H hidden size, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 256
DIGITS = 3
NUMBERS = 5  # place in the range; time, height and width; rows in front of the first placeholder
CHANNELS = NUMBERS * DIGITS


@dataclass(frozen=True)
class Rows:
    """Part of a video's range, as :func:`attach` wrote it.

    Attributes:
        place: index of the first row in the video's range.
        positions_3L: M-RoPE positions, counted from the start of the range, (3, L) int64.
        lead: rows in front of the range's first placeholder.
    """

    place: int
    positions_3L: Tensor
    lead: int


def attach(features_LH: Tensor, positions_3L: Tensor, lead: int) -> Tensor:
    """The features of a whole range with their channels, (L, H + D).

    Args:
        positions_3L: M-RoPE positions, counted from the start of the range.
        lead: rows in front of the range's first placeholder.
    """
    length = features_LH.shape[0]
    numbers_5L = torch.stack([torch.arange(length), *positions_3L.cpu(), torch.full((length,), lead)])
    powers_D = BASE ** torch.arange(DIGITS)
    digits_LD = (numbers_5L[..., None] // powers_D % BASE).permute(1, 0, 2).flatten(1)
    return torch.cat([features_LH, digits_LD.to(features_LH)], dim=1)


def detach(rows_LD: Tensor, hidden: int) -> tuple[Tensor, Rows]:
    """Takes apart what :func:`attach` put together, or some of its successive rows."""
    digits_LD = rows_LD[:, hidden:].cpu().long()
    powers_D = BASE ** torch.arange(DIGITS)
    numbers_5L = (torch.unflatten(digits_LD, 1, (NUMBERS, DIGITS)) * powers_D).sum(-1).T
    return rows_LD[:, :hidden], Rows(int(numbers_5L[0, 0]), numbers_5L[1:4], int(numbers_5L[4, 0]))
