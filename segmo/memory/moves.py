"""The keys and values that questions see, on their way to the model: layer by layer, each in one copy.

A layer's part is fetched when the model comes to it. What is in the host's memory, or in a file, is gathered there into
one buffer, which is pinned where there is a GPU, and moved by one copy on a stream of its own, so that the next layer's
part is on its way while this layer computes. On the CPU the same code runs without a stream.

Legend: B questions, K keys that each sees, Q keys of the conversation, L decoder layers, G key/value heads, D head
size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from segmo.memory.block import Block
from segmo.memory.packed import Packed, dense, only, unpack
from segmo.memory.seen import Seen
from segmo.runtime.distributed.ranks import Ranks

_ALIGNED = 16  # bytes: what any dtype can begin at
Fetch = Callable[[], tuple[Tensor, Tensor]]


class Moves:
    """Brings what questions see to the model's device.

    Args:
        seen: by each question, equally many keys.
        said: keys and values of the conversation, (L, G, Q, D) each, behind them for every question; None without any.
        device: of the model.
        ranks: that keep the segments.
        layers: of the decoder that will be asked for: the first ones.
    """

    def __init__(
        self,
        seen: Sequence[Seen],
        said: tuple[Tensor, Tensor] | None,
        device: torch.device,
        ranks: Ranks,
        layers: int,
    ) -> None:
        self.seen, self.said, self.device, self.ranks, self.layers = seen, said, device, ranks, layers
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._coming: dict[int, Callable[[], Tensor]] = {}

    def take(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (B, G, K + Q, D) each; the next layer's are under way when this returns."""
        pending = self._coming.pop(layer, None) or self._start(layer)
        if layer + 1 < self.layers and layer + 1 not in self._coming:
            self._coming[layer + 1] = self._start(layer + 1)
        keys_values = pending()
        if self.said is not None:
            said = torch.stack([states[layer] for states in self.said])[:, None]
            keys_values = torch.cat([keys_values, said.expand(-1, len(self.seen), -1, -1, -1)], 3)
        return keys_values[0], keys_values[1]

    def _start(self, layer: int) -> Callable[[], Tensor]:
        """Starts a layer; the returned function waits and gives its keys and values, (2, B, G, K, D)."""
        rows = [seen.parts(layer) for seen in self.seen]
        if self.stream is None:
            found = self._gathered(rows, layer)
            return lambda: found
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            found = self._gathered(rows, layer)
            there = self.stream.record_event()

        def wait() -> Tensor:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(there)
            found.record_stream(now)
            return found

        return wait

    def _gathered(self, rows: Sequence[Sequence[tuple[Block, Tensor]]], layer: int) -> Tensor:
        parts = [part for row in rows for part in row]
        picked = {number: _picked(block, layer, index) for number, (block, index) in enumerate(parts) if block.here}
        away = [number for number in picked if parts[number][0].place != "device"]
        moved = iter(in_one_copy([tensor for number in away for tensor in picked[number]], self.device))
        for number in away:
            picked[number] = tuple(next(moved) for _ in picked[number])
        states = {number: _whole(parts[number][0], layer, tensors) for number, tensors in picked.items()}
        states |= self._from_others(parts, states)
        numbers = iter(range(len(parts)))
        return torch.stack([torch.cat([states[next(numbers)] for _ in row], 2) for row in rows], 1)

    def _from_others(self, parts: Sequence[tuple[Block, Tensor]], states: dict[int, Tensor]) -> dict[int, Tensor]:
        """Of parts that other ranks hold: every rank hands out what it holds of what is seen."""
        dealt = {number: block.owner for number, (block, _) in enumerate(parts) if block.owner is not None}
        if not dealt:
            return {}
        counts = [0] * self.ranks.world
        start = {}
        for number, owner in dealt.items():
            start[number] = counts[owner]
            counts[owner] += len(parts[number][1])
        own = [states[number] for number in dealt if parts[number][0].here]
        mine = torch.cat(own, 2) if own else _nothing(parts[next(iter(dealt))][0], self.device)
        mine = pad(mine, (0, 0, 0, max(counts) - mine.shape[2]))
        everyone = self.ranks.gather(mine, "keys and values that a question sees")
        return {
            number: everyone[owner][:, :, start[number] : start[number] + len(parts[number][1])]
            for number, owner in dealt.items()
            if not parts[number][0].here
        }


def _nothing(block: Block, device: torch.device) -> Tensor:
    """No keys and no values of a layer, (2, G, 0, D)."""
    empty = dense(only(block.keys, slice(0)))[0].to(device)
    return torch.stack([empty, empty])


def _picked(block: Block, layer: int, index_K: Tensor) -> tuple[Tensor, ...]:
    """A layer's keys and values of some tokens as they are stored: (2, G, K, D), and scales (2, G, K, 1)."""
    both: Any = (block.keys, block.values)
    index_K = index_K.to(block.keys.device)
    if isinstance(block.keys, Packed):
        return tuple(
            torch.stack([getattr(states, name)[layer][:, index_K] for states in both]) for name in ("number", "scale")
        )
    return (torch.stack([states[layer][:, index_K] for states in both]),)


def _whole(block: Block, layer: int, picked: tuple[Tensor, ...]) -> Tensor:
    """Keys and values as the model takes them, (2, G, K, D)."""
    if len(picked) == 1:
        return picked[0]
    both: Any = (block.keys, block.values)
    channel = torch.stack([states.channel[layer] for states in both]).to(picked[0].device)
    number, scale = picked
    return unpack(number, scale, channel, both[0].dtype)


def in_one_copy(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host, of any dtypes, on a device, by a single copy."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    buffer = torch.empty(end, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")

    def view(buffer: Tensor, start: int, tensor: Tensor) -> Tensor:
        return buffer[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)

    for start, tensor in zip(starts, tensors, strict=True):
        view(buffer, start, tensor).copy_(tensor)
    moved = buffer.to(device, non_blocking=True)
    return [view(moved, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]


class Late:
    """A cache's layer that fetches its keys and values when they are first asked for, and repeats rows for beams."""

    keys: Any
    values: Any
    fetch: Fetch | None

    def __getattr__(self, name: str) -> Any:
        fetch: Fetch | None = self.__dict__.get("fetch")
        if fetch is None or name not in ("keys", "values"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.fetch = None
        self.keys, self.values = fetch()
        return getattr(self, name)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: what was fetched, and not the memory that it comes from."""
        self.keys  # noqa: B018  # fetched
        return self.__dict__

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As transformers' own."""
        rows, here = key_states.shape[0], self.keys.shape[0] if self.is_initialized else key_states.shape[0]
        if rows != here and rows % here == 0:
            self.batch_repeat_interleave(rows // here)
        both: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]
        return both


class LateLayer(Late, DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """See :class:`Late`."""

    def __init__(self, fetch: Fetch, like: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        del self.keys, self.values
        self.fetch = fetch


def late_layers(moves: Moves, like: Tensor) -> list[LateLayer]:
    """Layers of a cache that fetch their part; of the dtype and on the device of ``like``."""
    return [LateLayer(lambda layer=layer: moves.take(layer), like) for layer in range(moves.layers)]  # type: ignore[misc]
