"""Some successive tokens of a memory: what the prompt says of them, and their keys and values in every layer.

Legend: T tokens, V video tokens among them, L decoder layers, G key/value heads, D head size, H hidden size, R rows of
position ids (1, or 3 with M-RoPE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segmo.memory.packed import States, dense, joined, only, token_bytes

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
        keys, values: (L, G, T, D); empty where another rank holds them.
        file: that holds the same; None where there is none.
        place: where it is kept: "device", "host" or "disk".
        owner: rank that holds keys and values; None where every rank does.
        here: keys and values are here.
    """

    ids: Tensor
    at: Tensor
    frame: Tensor
    cell: Tensor
    novelty: Tensor
    position: Tensor
    features: Tensor
    keys: States
    values: States
    file: Path | None = None
    place: str = "device"
    owner: int | None = None
    here: bool = True

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def video(self) -> int:
        """V."""
        return self.features.shape[0]

    @property
    def bytes(self) -> int:
        """Of keys, values and features, as far as they are here."""
        return self.all_bytes if self.here else self.features.nbytes

    @property
    def all_bytes(self) -> int:
        """Of keys, values and features, wherever they are; what segments share for eight bits is not counted."""
        return len(self) * (token_bytes(self.keys) + token_bytes(self.values)) + self.features.nbytes

    def only(self, index_K: Tensor) -> Block:
        """The tokens at these places, ascending."""
        video_T = self.cell >= 0
        row_T = video_T.long().cumsum(0) - 1
        rows = row_T[index_K][video_T[index_K]].to(self.features.device)
        there = index_K.to(self.keys.device) if self.here else slice(0)
        return replace(
            self,
            ids=self.ids[index_K],
            at=self.at[index_K],
            frame=self.frame[index_K],
            cell=self.cell[index_K],
            novelty=self.novelty[index_K],
            position=self.position[:, index_K],
            features=self.features[rows],
            keys=only(self.keys, there),
            values=only(self.values, there),
            file=None,
            place=_loose(self.place),
        )

    def to(self, device: torch.device) -> Block:
        """Keys, values and features on a device."""
        if self.keys.device == device:
            return self
        return replace(
            self, features=self.features.to(device), keys=self.keys.to(device), values=self.values.to(device)
        )


def join(blocks: Sequence[Block]) -> Block:
    """Successive blocks as one, in the first one's place and of its owner; at least one."""
    if len(blocks) == 1:
        return blocks[0]
    device = blocks[0].keys.device
    states: dict[str, Any] = {
        name: joined([getattr(block, name).to(device) for block in blocks]) for name in ("keys", "values")
    }
    features = torch.cat([block.features.to(device) for block in blocks])
    first = blocks[0]
    place = _loose(first.place)
    return Block(**columns(blocks), features=features, **states, place=place, owner=first.owner, here=first.here)


def parts_of(blocks: Sequence[Block], index_K: Tensor) -> list[tuple[Block, Tensor]]:
    """The blocks that have one of the tokens at these places, ascending, and which of a block's tokens these are."""
    found, start = [], 0
    for block in blocks:
        inside = index_K[(index_K >= start) & (index_K < start + len(block))] - start
        start += len(block)
        if len(inside):
            found.append((block, inside))
    return found


def _loose(place: str) -> str:
    """Where something is that was taken out of a file, or copied beside it."""
    return "host" if place == "disk" else place


def columns(blocks: Sequence[Block]) -> dict[str, Any]:
    """:data:`COLUMNS` of successive blocks, joined; at least one block."""
    return {
        name: torch.cat([getattr(block, name) for block in blocks], 1 if name == "position" else 0) for name in COLUMNS
    }


def states_of(blocks: Sequence[Block], device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys and values of successive blocks on a device, (L, G, T, D) each."""
    keys, values = (torch.cat([dense(getattr(b, name).to(device)) for b in blocks], 2) for name in ("keys", "values"))
    return keys, values
