"""Where segments that are over are kept: eight bits or as they are, and beside the model, on the host, or in files.

The newest segments come first: they fill the first place up to its budget, older ones the next. A place's order is that
of the video, so a segment moves on once and never back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segmo.errors import RankError
from segmo.memory.block import Block, join, parts_of
from segmo.memory.options import MemoryOptions
from segmo.memory.packed import Packed, States, channels, only, pack
from segmo.memory.store import read_block, write_block, writing
from segmo.runtime.distributed.ranks import Ranks


class Keeper:
    """Keeps segments as the options say.

    Args:
        options: of the memory.
        device: of the model.

    Attributes:
        channel: sizes of the keys' channels and of the values', from the first segment that is kept in eight bits.
        ranks: that share the keeping.
    """

    def __init__(self, options: MemoryOptions, device: torch.device) -> None:
        self.options, self.device = options, device
        self.ranks = Ranks.asked(options.options.ranks)
        self.channel: tuple[Tensor, Tensor] | None = None
        self._dealt = [0] * self.ranks.world

    def take(self, block: Block) -> Block:
        """A segment that is over, as it is stored from now on; this rank's, or without keys and values if another's."""
        owner = self._dealt.index(min(self._dealt))
        self._dealt[owner] += len(block)
        return self.dealt(self.packed(block), owner) if self.ranks.world > 1 else self.packed(block)

    def packed(self, block: Block) -> Block:
        """In eight bits, if that was asked for."""
        if self.options.bits is None:
            return block
        states: Any = (block.keys, block.values)
        stored = isinstance(block.keys, Packed)
        if self.channel is None:
            found = [state.channel.to(self.device) if stored else channels(state) for state in states]
            self.channel = (found[0], found[1])
        if stored:
            return block
        keys, values = (pack(state, channel) for state, channel in zip(states, self.channel, strict=True))
        return replace(block, keys=keys, values=values)

    def dealt(self, block: Block, owner: int) -> Block:
        """A block of which one rank alone keeps keys and values."""
        if owner == self.ranks.rank:
            return replace(block, owner=owner)
        keys, values = only(block.keys, slice(0)), only(block.values, slice(0))
        return replace(block, keys=keys, values=values, owner=owner, here=False)

    def thinned(self, blocks: Sequence[Block], index_K: Tensor) -> list[Block]:
        """What is left of successive segments, as one; or as one for each rank. All ranks call it together.

        Args:
            blocks: the segments.
            index_K: places of the tokens that stay among theirs, ascending.
        """
        world, parts = self.ranks.world, parts_of(blocks, index_K)
        if world == 1:
            return [join([block.only(inside) for block, inside in parts])]
        for block in blocks:
            self._dealt[block.owner or 0] -= len(block)
        found, before = [], 0
        runs: list[list[Block]] = [[] for _ in range(world)]
        for block, inside in parts:
            # A token's rank follows from its place, so that every rank has a run of them, as long as the others'.
            owner_K = torch.arange(before, before + len(inside)) * world // len(index_K)
            before += len(inside)
            for owner in torch.unique(owner_K).tolist():
                runs[owner].append(self._given(block.only(inside[owner_K == owner]), owner))
        found = [join(run) for run in runs if run]
        for block in found:
            self._dealt[block.owner or 0] += len(block)
        return found

    def _given(self, block: Block, owner: int) -> Block:
        """A block that ``owner`` keeps from now on."""
        return block if block.owner == owner else self.dealt(self.whole(block), owner)

    def whole(self, block: Block) -> Block:
        """A block with keys and values on every rank; all ranks call it together."""
        if block.owner is None:
            return block
        keys, values = (self._shared(block, states) for states in (block.keys, block.values))
        return replace(block, keys=keys, values=values, owner=None, here=True)

    def together(self, step: str) -> None:
        """Waits until all ranks are here."""
        self.ranks.gather(torch.zeros(1, dtype=torch.float32), step)

    def alike(self, what: object, name: str) -> None:
        """Whether all ranks bring the same.

        Raises:
            RankError: they do not, and what one of them would be told is another's.
        """
        if self.ranks.world == 1:
            return
        number = int.from_bytes(hashlib.sha256(str(what).encode(errors="replace")).digest()[:7], "big")
        found = self.ranks.gather(torch.tensor([number], dtype=torch.int64), name)[:, 0].tolist()
        other = next((rank for rank, each in enumerate(found) if each != number), None)
        if other is not None:
            raise RankError(
                f"rank {self.ranks.rank} has another {name} than rank {other}: {what!s:.120}; the ranks of a memory "
                "make the same calls"
            )

    def _shared(self, block: Block, states: States) -> States:
        if isinstance(states, Packed):
            number, scale = (self._sent(block, tensor) for tensor in (states.number, states.scale))
            return replace(states, number=number, scale=scale)
        return self._sent(block, states)

    def _sent(self, block: Block, tensor: Tensor) -> Tensor:
        """A tensor (L, G, T, D) from the rank that holds it."""
        assert block.owner is not None
        if not block.here:
            layers, groups, _, size = tensor.shape
            tensor = tensor.new_empty(layers, groups, len(block), size)
        return self.ranks.share(tensor, block.owner, "a segment of a memory")

    # places

    def beside(self, block: Block) -> Block:
        """A block beside the model."""
        return self._put(block, "device")

    def arrange(self, blocks: Sequence[Block]) -> list[Block]:
        """Segments, each in its place."""
        return [self._put(block, place) for block, place in zip(blocks, self._places(blocks), strict=True)]

    def over(self, blocks: Sequence[Block]) -> int:
        """Bytes that the last place lacks."""
        name, budget = list(self.options.places.items())[-1]
        if budget is None:
            return 0
        places = self._places(blocks)
        return max(0, sum(block.bytes for block, place in zip(blocks, places, strict=True) if place == name) - budget)

    def _places(self, blocks: Sequence[Block]) -> list[str]:
        """The place of each block: a block goes no further forward than the one that is newer."""
        (place, left), *others = self.options.places.items()
        found = []
        for block in reversed(blocks):
            while others and left is not None and block.bytes > left:
                (place, left), *others = others
            found.append(place)
            left = None if left is None else left - block.bytes
        return found[::-1]

    def _put(self, block: Block, place: str) -> Block:
        if block.place == place:
            return block
        if place == "disk":
            folder = self.options.folder
            assert folder is not None
            with writing(folder):
                name = write_block(folder, block)
            return read_block(folder, name)
        if block.place == "disk":
            block = _copied(block)
        block = block.to(self.device) if place == "device" else _pinned(block.to(torch.device("cpu")), self.device)
        return replace(block, place=place)


def _copied(block: Block) -> Block:
    """A block whose tensors are no part of a file any more."""
    here = torch.arange(len(block))
    return replace(block.only(here), file=block.file)


def _pinned(block: Block, device: torch.device) -> Block:
    """In memory that a GPU reads without the processor's help, where there is one."""
    if device.type != "cuda":
        return block
    states: dict[str, Any] = {}
    for name in ("keys", "values"):
        state = getattr(block, name)
        pinned = (
            replace(state, number=state.number.pin_memory(), scale=state.scale.pin_memory())
            if isinstance(state, Packed)
            else state.pin_memory()
        )
        states[name] = pinned
    return replace(block, **states, features=block.features.pin_memory())
