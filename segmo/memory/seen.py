"""Tokens of a memory that a question sees, by name: their keys and values stay where they are.

Legend: T tokens held, K of them that are seen, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from segmo.memory.block import Block, parts_of


class Asked(Protocol):
    """A question in its place, as :class:`segmo.memory.conversation.Turn` has it."""

    @property
    def words(self) -> Sequence[int]:
        """Ids that choose what is seen."""

    @property
    def before(self) -> list[int]:
        """Ids behind the video whose keys are known."""

    @property
    def said(self) -> tuple[Tensor, Tensor] | None:
        """These keys and values."""

    @property
    def ids(self) -> list[int]:
        """That come behind them."""


@dataclass(frozen=True)
class Seen:
    """What a question sees of a video.

    Attributes:
        held: blocks, in order.
        known: their columns.
        index: places of the tokens among those held, ascending; one row for all layers (1, K), or one for each (L, K).
        scenes: how many video tokens of each scene were chosen, by the scene's first frame; over layers on average.
    """

    held: Sequence[Block]
    known: dict[str, Tensor]
    index: Tensor
    scenes: dict[int, int]

    def __len__(self) -> int:
        """K."""
        return self.index.shape[1]

    @property
    def ids(self) -> Tensor:
        """Of the tokens, (K,); where layers see others, of the first layer's."""
        return self.known["ids"][self.index[0]]

    @property
    def at(self) -> Tensor:
        """Where they stand in the prompt, (1 or L, K)."""
        return self.known["at"][self.index]

    @property
    def video(self) -> int:
        """Video tokens among them."""
        return int((self.known["cell"][self.index[0]] >= 0).sum())

    def parts(self, layer: int) -> list[tuple[Block, Tensor]]:
        """The blocks that have a token of it for a layer, and which of a block's tokens these are."""
        return parts_of(self.held, self.index[layer if len(self.index) > 1 else 0])
