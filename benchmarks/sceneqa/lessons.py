"""What the decoder is taught beside the answers: where to look, and what a video token should know of what came before.

Without guidance the decoder stays for thousands of updates on a plateau on which it guesses among the digits it saw.
None of this is part of the shipped model: the probes are thrown away, and looks are losses on ordinary attention.

Legend: B videos, Q questions, R rows, F frames, V video tokens that were kept, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from batches import FIRST_DIGIT, LAST, LAST_WORD, Batch
from curriculum import KIND_WEIGHT
from forward import Answered
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from segmo.sceneqa.backgrounds import COLOURS, TEXTURES
from segmo.sceneqa.questions import KINDS

FIND_LAYER, NAMED_LAYER, READ_LAYER = 1, 2, 3
LOOK_ROWS: dict[int, tuple[int, ...]] = {
    FIND_LAYER: (LAST,),
    NAMED_LAYER: (FIRST_DIGIT, LAST_WORD),
    READ_LAYER: (LAST,),
}
CLOCK_LAYER, NOTE_LAYER = 1, 2  # after which a video token knows the time, and what came before
CLOCK = 64.0  # frames in a unit of the clock
RARE = 8.0  # weight of a token in which a digit arrives; few do


def kind_weight(kind: Tensor) -> Tensor:
    """Weights of questions by their kind's index."""
    return torch.tensor([KIND_WEIGHT[name] for name in KINDS])[kind]


def look_loss(weights_BQV: Tensor, where_BQF: Tensor, frame_BV: Tensor, weight_BQ: Tensor) -> Tensor:
    """Weighted mean of minus log of the attention paid to the right frames; questions without such frames are left
    out."""
    index = frame_BV[:, None].expand(-1, where_BQF.shape[1], -1)
    inside = (weights_BQV * where_BQF.gather(2, index)).sum(-1)
    known = where_BQF.any(-1)
    if not bool(known.any()):
        return weights_BQV.new_zeros(())
    weight = weight_BQ[known]
    return -(weight * inside[known].clamp(min=1e-6).log()).sum() / weight.sum()


@dataclass(frozen=True)
class Taught:
    """Losses by name, and their plain values for the log."""

    looks: Tensor
    notes: Tensor
    figures: dict[str, float]


class Lessons(nn.Module):
    """The probes and the losses."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.clock = nn.Linear(hidden, 1)
        self.before = nn.Linear(hidden, len(COLOURS) + len(TEXTURES))
        self.arrives = nn.Linear(hidden, 1)

    def forward(self, answered: Answered, batch: Batch, kept_BV: Tensor) -> Taught:
        """All lessons on one batch."""
        weight = kind_weight(batch.kind.clamp(min=0))
        looks, frame_BV = answered.looks, kept_BV // batch.grid.cells
        find = look_loss(looks[FIND_LAYER][:, :, 0], batch.find, frame_BV, weight)
        read = look_loss(looks[READ_LAYER][:, :, 0], batch.read, frame_BV, weight)
        named = look_loss(
            looks[NAMED_LAYER].flatten(1, 2),
            batch.named.flatten(1, 2),
            frame_BV,
            weight[..., None].expand(-1, -1, 2).flatten(1),
        )
        notes, figures = self._notes(answered.hidden, batch, kept_BV)
        figures |= {"find": float(find.detach()), "read": float(read.detach()), "named": float(named.detach())}
        return Taught(find + read + named, notes, figures)

    def _notes(self, hidden: dict[int, Tensor], batch: Batch, kept_BV: Tensor) -> tuple[Tensor, dict[str, float]]:
        frame_BV = kept_BV // batch.grid.cells
        time = smooth_l1_loss(self.clock(hidden[CLOCK_LAYER])[..., 0] * 8, frame_BV / CLOCK * 8)
        before_BV2 = batch.notes.before.gather(1, frame_BV[..., None].expand(-1, -1, 2))
        known = before_BV2[..., 0] >= 0
        colour, texture = self.before(hidden[NOTE_LAYER][known]).split((len(COLOURS), len(TEXTURES)), dim=-1)
        colour_n, texture_n = before_BV2[known].unbind(-1)
        before = cross_entropy(colour, colour_n) + cross_entropy(texture, texture_n)
        arrives = batch.notes.arrives.gather(1, kept_BV).float()
        seen = binary_cross_entropy_with_logits(
            self.arrives(hidden[NOTE_LAYER])[..., 0], arrives, pos_weight=torch.tensor(RARE)
        )
        right = (colour.argmax(-1) == colour_n) & (texture.argmax(-1) == texture_n)
        figures = {"clock": float(time.detach()), "before": float(right.float().mean())}
        figures["arrives"] = float(seen.detach())
        return time + before + seen, figures
