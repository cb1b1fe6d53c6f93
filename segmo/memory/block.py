"""Some successive tokens of a memory: what the prompt says of them, and their keys and values in every layer.

Legend: T tokens, V video tokens among them, L decoder layers, G key/value heads, D head size, H hidden size, R rows of
position ids (1, or 3 with M-RoPE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What of a block is on the CPU wherever its keys are: little, and read by every choice.
COLUMNS = ("ids", "at", "frame", "cell", "novelty", "position")


@dataclass(frozen=True)
class Block:
    """Successive tokens, of which some may have been dropped since.

    Attributes:
        ids: of the tokens, (T,) int64.
        at: where they stand in the prompt, ascending, (T,) int64.
        frame: frame that each belongs to, counted through the whole video, ``SINK`` for text before it; (T,) int64.
        cell: place of a video token within its frame, -1 for text; (T,) int64.
        novelty: 1 - cosine with the same cell of the frame before, 0 for text; (T,) fp32.
        position: position ids, (R, T) int64.
        features: what the vision encoder gave for the video tokens, in the model's dtype, (V, H).
        keys, values: (L, G, T, D).
        file: that holds the same; None where there is none.
    """

    ids: Tensor
    at: Tensor
    frame: Tensor
    cell: Tensor
    novelty: Tensor
    position: Tensor
    features: Tensor
    keys: Tensor
    values: Tensor
    file: Path | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def video(self) -> int:
        """V."""
        return self.features.shape[0]

    @property
    def bytes(self) -> int:
        """Of keys, values and features."""
        return sum(x.numel() * x.element_size() for x in (self.keys, self.values, self.features))

    def only(self, index_K: Tensor) -> Block:
        """The tokens at these places, ascending."""
        video_T = self.cell >= 0
        row_T = video_T.long().cumsum(0) - 1
        rows = row_T[index_K][video_T[index_K]].to(self.features.device)
        there = index_K.to(self.keys.device)
        return Block(
            self.ids[index_K],
            self.at[index_K],
            self.frame[index_K],
            self.cell[index_K],
            self.novelty[index_K],
            self.position[:, index_K],
            self.features[rows],
            self.keys[:, :, there],
            self.values[:, :, there],
        )

    def to(self, device: torch.device) -> Block:
        """Keys, values and features on a device."""
        if self.keys.device == device:
            return self
        return replace(
            self, features=self.features.to(device), keys=self.keys.to(device), values=self.values.to(device)
        )


def join(blocks: Sequence[Block]) -> Block:
    """Successive blocks as one; at least one."""
    if len(blocks) == 1:
        return blocks[0]
    dims = {"position": 1, "keys": 2, "values": 2}
    joined: dict[str, Any] = {
        field.name: torch.cat([getattr(block, field.name) for block in blocks], dims.get(field.name, 0))
        for field in fields(Block)
        if field.name != "file"
    }
    return Block(**joined)


def columns(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """:data:`COLUMNS` of successive blocks, joined; at least one block."""
    return {
        name: torch.cat([getattr(block, name) for block in blocks], 1 if name == "position" else 0) for name in COLUMNS
    }
