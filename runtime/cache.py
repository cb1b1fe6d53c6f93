"""A KV cache behind a cut: it holds K keys a layer and has seen N tokens.

Whoever asks how long the conversation is (positions, the ids that ``generate`` still has to feed) gets what was seen;
whoever makes a mask gets what is held. transformers' own sliding-window layers tell the two apart in the same way.

In a mask the held keys stand directly in front of the new tokens: key ``i`` of a layer has the column ``dropped + i``.
So the causal rule holds as transformers writes it, and a 2-D mask, which has a column for every token that was seen,
is put into that order by :meth:`CutLayer.held_columns`. ``segmo/compat/masks.py`` sees to it that masks are made so.

Legend: B batch, N tokens seen, K keys held, T new tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from segmo.errors import CacheError


class CutLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """The keys and values of one decoder layer after some tokens of the prompt were dropped.

    It behaves as the layer that it took the place of, for a conversation of :attr:`seen` tokens. Takes
    ``copy.deepcopy``, ``reorder_cache``, ``batch_repeat_interleave``, ``batch_select_indices``, ``reset``, offloading,
    and ``crop`` down to the prompt that was cut.

    Args:
        layer: of the cache that the cut prefill has filled; keys and values (B, G, K, D).
        dropped: N - K.
        kept_BK: positions in the prompt of the keys held, ascending, (B, K) int64.

    Attributes:
        dropped: how many tokens were seen and are not held, the same for each row.
    """

    def __init__(self, layer: DynamicLayer, dropped: int, kept_BK: Tensor) -> None:
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self.dropped = dropped
        self.kept_BK: Tensor | None = kept_BK

    # how long it is

    @property
    def seen(self) -> int:
        """Tokens of the conversation that went through this layer, dropped ones included."""
        return self.held + self.dropped

    @property
    def held(self) -> int:
        """Keys (and values) of this layer."""
        return int(super().get_seq_length())

    @property
    def positions(self) -> Tensor:
        """Where in the conversation each held key stands, ascending, (B, held) int64 on the keys' device.

        Counts tokens from 0, padding included. These are not the position ids of M-RoPE.
        """
        if self.kept_BK is None:
            return torch.empty(0, 0, dtype=torch.long)
        start = self.kept_BK.shape[1] + self.dropped
        since = torch.arange(start, self.seen, device=self.kept_BK.device)
        return torch.cat([self.kept_BK, since.expand(self.kept_BK.shape[0], -1)], dim=1)

    def get_seq_length(self) -> int:
        """:attr:`seen`, as transformers asks for it."""
        return super().get_seq_length() + self.dropped  # type: ignore[no-any-return]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask for ``query_length`` new tokens, and the number of the first."""
        return super().get_seq_length() + query_length, self.dropped

    def held_columns(self, mask: Tensor) -> Tensor:
        """A mask with a column for each token seen (and new), (B, ..., N + T), in the order of this cache.

        Its last K + T columns are those of the held keys and the new tokens; what stands before is read by nobody.
        A mask that ends before the cut's end is filled up with False, as transformers fills up short masks.
        """
        if self.kept_BK is None:
            return mask
        kept_BK = self.kept_BK
        end = kept_BK.shape[1] + self.dropped
        if mask.shape[-1] < end:
            mask = torch.nn.functional.pad(mask, (0, end - mask.shape[-1]))
        index = kept_BK.view(kept_BK.shape[0], *[1] * (mask.dim() - 2), -1).expand(*mask.shape[:-1], -1)
        return torch.cat([mask[..., : self.dropped], mask.gather(-1, index), mask[..., end:]], dim=-1)

    # what changes it

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the newest tokens off again: ``-n`` of them; a positive number is the length that is left.

        Raises:
            CacheError: tokens of the prompt that was cut are among them.
        """
        removed = -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        if not removed or not self.is_initialized:
            return
        cut = 0 if self.kept_BK is None else self.kept_BK.shape[1]
        if removed > self.held - cut:
            raise CacheError(
                f"crop would take {removed:,} tokens off a cache of {self.seen:,}, of which {self.held - cut:,} came "
                f"after the prompt that SegMo cut: of that prompt's {cut + self.dropped:,} tokens {cut:,} are held, so "
                "there is no shorter prompt to go back to. Keep a copy.deepcopy of the cache from before those tokens, "
                "or prefill the shorter prompt anew (keep=1 drops nothing)"
            )
        self.keys = self.keys[..., :-removed, :]
        self.values = self.values[..., :-removed, :]

    def reset(self) -> None:
        """Empties the layer; it may be filled with another conversation."""
        super().reset()
        self.dropped, self.kept_BK = 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the rows ``beam_idx``, (B,)."""
        super().reorder_cache(beam_idx)
        if self.kept_BK is not None:
            self.kept_BK = self.kept_BK.index_select(0, beam_idx.to(self.kept_BK.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        super().batch_repeat_interleave(repeats)
        if self.kept_BK is not None:
            self.kept_BK = self.kept_BK.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Takes the rows ``indices``."""
        super().batch_select_indices(indices)
        if self.kept_BK is not None:
            self.kept_BK = self.kept_BK[indices, ...]


class SpreadLayer(CutLayer):
    """One rank's part of a layer whose keys stayed on the ranks that made them (``shard-segments{cache=sharded}``).

    The answer goes on from it token by token, on all ranks together. It takes no further turn.
    """

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As in :class:`CutLayer`, for one new token.

        Raises:
            CacheError: for several, as in a second turn.
        """
        if query_length > 1:
            raise CacheError(_SPREAD.format(f"{query_length} new tokens come at once, as in a second turn"))
        return super().get_mask_sizes(query_length)

    def held_columns(self, mask: Tensor) -> Tensor:
        """No rank can say where its keys stand in a mask.

        Raises:
            CacheError: always.
        """
        raise CacheError(_SPREAD.format("an attention mask came with a new token"))


_SPREAD = (
    "the KV cache is spread over the ranks, which takes one new token at a time and no attention mask, but {}: compile "
    'with cache="gather" (the default) for several turns or padded prompts'
)


def find_cache(inputs: Any, result: Any) -> Cache | None:
    """The cache that a call has filled: the one it was given, or the one it gives back; None without."""
    values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else ()
    return next((each for each in (inputs.get("past_key_values"), *values) if isinstance(each, Cache)), None)


def mark_cut(cache: Cache, seen: int, index_BK: Tensor, spread: bool = False) -> None:
    """Tells a cache that the prefill which has just filled it kept some of its tokens only.

    Args:
        cache: changed in place; its layers become :class:`CutLayer`.
        seen: N, tokens of the prompt.
        index_BK: positions of the kept tokens, ascending, (B, K) int64.
        spread: the layers hold this rank's part of the kept tokens.

    Raises:
        CacheError: a layer is of another kind than transformers' dynamic one.
    """
    kind = SpreadLayer if spread else CutLayer
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, (DynamicLayer, CutLayer)):
            held = layer.keys.shape[-2]
            cache.layers[number] = kind(layer, seen - held, index_BK.clone())
