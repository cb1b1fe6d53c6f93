"""A KV cache behind a cut: it holds K keys a layer and has seen N tokens.

Whoever asks how long the conversation is (positions, the ids that ``generate`` still has to feed) gets what was seen;
whoever makes a mask gets what is held. transformers' own sliding-window layers tell the two apart in the same way.

A mask that was handed in has a column for every token that was seen; of it, :meth:`CutLayer.held_columns` are taken.
``segmo/compat/masks.py`` sees to it that transformers makes its masks so, whoever calls the model.

Legend: B batch, N prompt tokens that were cut to K, L tokens seen by now, M keys held by now, T new tokens.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from segmo.compat.cache_name import cache_of
from segmo.errors import CacheError

if TYPE_CHECKING:
    from segmo.runtime.distributed.schedule import RankSchedule


class _Cut(DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """What layers of every kind keep and answer after a cut.

    Args:
        layer: of the cache that the cut prefill has filled.
        seen: N.
        kept_BK: positions in the prompt of the keys that were kept, ascending, (B, K) int64.
    """

    keys: Tensor  # a prefill has filled it

    def __init__(self, layer: CacheLayerMixin, seen: int, kept_BK: Tensor) -> None:
        self.__dict__.update(layer.__dict__)
        # At the first decode step there are as many keys as kept tokens; Dynamo would take the two sizes for one, and
        # compile the second step anew.
        torch._dynamo.maybe_mark_dynamic(kept_BK, 1)
        self.kept_BK: Tensor | None = kept_BK
        self.dropped = seen - kept_BK.shape[1]

    @property
    def seen(self) -> int:
        """Tokens of the conversation that went through this layer, dropped ones included."""
        return int(self.get_seq_length())

    @property
    def held(self) -> int:
        """Keys (and values) of this layer."""
        return int(self.keys.shape[-2]) if self.is_initialized else 0

    @property
    def positions(self) -> Tensor:
        """Where in the conversation each held key stands, ascending, (B, held) int64 on the keys' device.

        Counts tokens from 0, padding included. These are not the position ids of M-RoPE.
        """
        if not self.is_initialized:
            return torch.empty(0, 0, dtype=torch.long)
        found = self._positions(0)
        return found[:, found.shape[1] - self.held :]

    def _positions(self, new: int) -> Tensor:
        """Of the kept tokens, those since, and ``new`` ones that are still to come."""
        since = torch.arange(self._end, self.get_seq_length() + new, device=self.keys.device)
        if self.kept_BK is None:
            return since[None]
        return torch.cat([self.kept_BK, since.expand(self.kept_BK.shape[0], -1)], dim=1)

    @property
    def _end(self) -> int:
        """N."""
        return 0 if self.kept_BK is None else self.kept_BK.shape[1] + self.dropped

    def held_columns(self, mask: Tensor) -> Tensor:
        """Of a mask with a column for each token seen and each new one: the kept tokens', and all behind the prompt.

        Args:
            mask: (B or 1, ..., L + T). One that ends inside the prompt that was cut is filled up with False, as
                transformers fills up short masks.

        Returns:
            (B, ..., L - N + K + T)
        """
        if self.kept_BK is None:
            return mask
        kept_BK, end = self.kept_BK, self._end
        if mask.shape[-1] < end:
            mask = torch.nn.functional.pad(mask, (0, end - mask.shape[-1]))
        mask = mask.expand(kept_BK.shape[0], *mask.shape[1:])
        index = kept_BK.view(kept_BK.shape[0], *[1] * (mask.dim() - 2), -1).expand(*mask.shape[:-1], -1)
        return torch.cat([mask.gather(-1, index), mask[..., end:]], dim=-1)

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the newest tokens off again: ``-n`` of them; a positive number is the length that is left.

        Raises:
            CacheError: tokens that were dropped are among them.
        """
        gone = self._gone(tokens_to_remove)
        inside = gone - (self.seen - self._end)  # so many of the prompt that was cut
        if inside > 0 and self.kept_BK is not None:
            count = self.kept_BK.shape[1]
            if inside > count or bool((self.kept_BK[:, -inside] != self._end - inside).any()):
                raise CacheError(
                    f"crop would take {gone:,} tokens off a cache of {self.seen:,}. {inside:,} of them belong to the "
                    f"prompt of {self._end:,} tokens that SegMo cut to {count:,}, and some of those were dropped, so "
                    "there is no shorter prompt to go back to. Keep a copy.deepcopy of an earlier cache, or prefill "
                    "the shorter prompt anew (keep=1 drops nothing)"
                )
            self.kept_BK = self.kept_BK[:, :-inside]
        super().crop(-gone)

    def _gone(self, tokens_to_remove: int) -> int:
        return -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)

    def reset(self) -> None:
        """Empties the layer; it may be filled with another conversation."""
        super().reset()
        self.dropped, self.kept_BK = 0, None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
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


class CutLayer(_Cut):  # type: ignore[no-untyped-call]  # of transformers
    """The keys and values of one decoder layer after some tokens of the prompt were dropped.

    It behaves as the layer that it took the place of, for a conversation of :attr:`seen` tokens. Takes
    ``copy.deepcopy``, ``reorder_cache``, ``batch_repeat_interleave``, ``batch_select_indices``, ``reset``, offloading,
    and ``crop`` as far as nothing was dropped behind the place.

    In a mask the held keys stand directly in front of the new tokens: key ``i`` has the column ``dropped + i``.

    Attributes:
        dropped: N - K, the same for each row.
        kept_BK: positions in the prompt of the keys that were kept, ascending, (B, K) int64; None after ``reset``.
    """

    def get_seq_length(self) -> int:
        """:attr:`seen`, as transformers asks for it."""
        return super().get_seq_length() + self.dropped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask for ``query_length`` new tokens, and the number of the first."""
        return super().get_seq_length() + query_length, self.dropped


class CutSlidingLayer(_Cut, DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]  # of transformers
    """The same for a layer with a sliding window: it holds the last of the kept keys.

    The window is one of positions in the conversation. Dropped tokens count in it, so fewer held keys than the window's
    width are inside, and which ones depends on each row: masks are made by :meth:`window_mask`.
    """

    def __init__(self, layer: CacheLayerMixin, seen: int, kept_BK: Tensor) -> None:
        super().__init__(layer, seen, kept_BK)
        self.cumulative_length = seen

    def window_mask(self, mask: Tensor | None, new: int) -> Tensor:
        """Which held and new keys each of ``new`` rows sees, (B, 1, T, M + T) bool.

        Args:
            mask: (B, L + T) bool, False at padding; None without any.
        """
        count = self.keys.shape[-2] + new
        key_BM = self._positions(new)[:, -count:]
        row_T = torch.arange(self.get_seq_length(), self.get_seq_length() + new, device=key_BM.device)
        distance = row_T[:, None] - key_BM[:, None, None, :]
        seen = (distance >= 0) & (distance < self.sliding_window)
        if mask is not None:
            seen = seen & self.held_columns(mask)[:, None, None, -count:]
        return seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask for ``query_length`` new tokens, and the number of the first had nothing been dropped."""
        if not self.is_initialized:
            return super().get_mask_sizes(query_length)
        return self.keys.shape[-2] + query_length, self.cumulative_length - self.keys.shape[-2]

    def crop(self, tokens_to_remove: int) -> None:
        """See :meth:`CutLayer.crop`; where the window is full, as far as transformers can."""
        left = self.seen - self._gone(tokens_to_remove)
        super().crop(tokens_to_remove)
        self.cumulative_length = left  # transformers counts the keys that are held


class SpreadLayer(CutLayer):  # type: ignore[no-untyped-call]  # of transformers
    """One rank's part of a layer whose keys stayed on the ranks that made them (``shard-segments{cache=sharded}``).

    The answer goes on from it token by token, on all ranks together. It takes no further turn.

    Attributes:
        schedule: who holds what, by the prefill that filled it.
        together: whether a call is running in which all ranks' parts are attended to. In any other one this rank's part
            would pass for the whole.
    """

    def __init__(self, layer: CacheLayerMixin, seen: int, kept_BK: Tensor, schedule: RankSchedule) -> None:
        super().__init__(layer, seen, kept_BK)
        self.dropped = seen - self.keys.shape[-2]
        self.schedule, self.together = schedule, False

    @property
    def positions(self) -> Tensor:
        """Not known to a rank.

        Raises:
            CacheError: always.
        """
        raise CacheError(_SPREAD.format("the positions of all keys were asked for"))

    def crop(self, tokens_to_remove: int) -> None:
        """Takes nothing off.

        Raises:
            CacheError: if it should.
        """
        if self._gone(tokens_to_remove):
            raise CacheError(_SPREAD.format("tokens should be taken off it"))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As in :class:`CutLayer`, for one new token.

        Raises:
            CacheError: for several, as in a second turn; and for one in a call that knows this rank's part alone.
        """
        if not self.together:
            raise CacheError(_SPREAD.format("the model that is called is not compiled for such a cache"))
        if query_length > 1:
            raise CacheError(_SPREAD.format(f"{query_length} tokens came at once, as in a second turn"))
        return super().get_mask_sizes(query_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes no beams.

        Raises:
            CacheError: always.
        """
        raise CacheError(_SPREAD.format("its rows should be put in another order, as beams are"))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Takes one answer.

        Raises:
            CacheError: always.
        """
        raise CacheError(_SPREAD.format(f"{repeats} answers were asked for"))

    def held_columns(self, mask: Tensor) -> Tensor:
        """No rank can say where its keys stand in a mask.

        Raises:
            CacheError: always.
        """
        raise CacheError(_SPREAD.format("an attention mask came with a new token"))


_SPREAD = (
    "the KV cache is spread over the ranks, which takes one new token at a time and no attention mask, but {}: compile "
    'with cache="gather" (the default) for several turns or answers, beams, padded prompts and assisted decoding'
)


def find_cache(inputs: Any, result: Any) -> Cache | None:
    """The cache that a call has filled: the one it was given, or the one it gives back; None without."""
    values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else ()
    return next((each for each in (cache_of(inputs), *values) if isinstance(each, Cache)), None)


def mark_cut(cache: Cache, seen: int, index_BK: Tensor, spread: RankSchedule | None = None) -> None:
    """Tells a cache that the prefill which has just filled it kept some of its tokens only.

    Layers without a key for each token (linear attention, convolution) stay as they are.

    Args:
        cache: changed in place; its layers become :class:`CutLayer` or :class:`CutSlidingLayer`.
        seen: N, tokens of the prompt.
        index_BK: positions of the kept tokens, ascending, (B, K) int64.
        spread: where layers hold this rank's part of the kept tokens: whose part is which.

    Raises:
        CacheError: a layer is of a kind that is not known here.
    """
    for number, layer in enumerate(cache.layers):
        if not isinstance(layer, CacheLayerMixin) or not layer.is_initialized:
            continue
        kept_BK = index_BK.to(index_BK.device if layer.keys is None else layer.keys.device, copy=True)
        window = isinstance(layer, DynamicSlidingWindowLayer)  # which has the window's keys whole on every rank
        if spread is not None and not window and layer.keys is not None and layer.keys.shape[-2] == spread.length:
            cache.layers[number] = SpreadLayer(layer, seen, kept_BK, spread)
            continue
        kind = _kind(type(layer))
        if kind is None:
            raise CacheError(
                f"the KV cache's layer {number} is a {type(layer).__name__}, and SegMo does not know how that counts "
                "tokens that were dropped; use transformers' DynamicCache, or keep=1"
            )
        cache.layers[number] = kind(layer, seen, kept_BK)


@functools.cache
def _kind(kind: type[CacheLayerMixin]) -> type[_Cut] | None:
    """What a layer of this kind becomes: one that counts as transformers' own two do, and does all else as it did."""
    if issubclass(kind, _Cut):
        return kind
    for known, cut in ((DynamicSlidingWindowLayer, CutSlidingLayer), (DynamicLayer, CutLayer)):
        if kind is known:
            return cut
        if issubclass(kind, known):
            same = all(getattr(kind, name) is getattr(known, name) for name in ("get_seq_length", "get_mask_sizes"))
            # Of no layer type: transformers would fill new caches with this class in the place of the one it is for.
            return type(f"Cut{kind.__name__}", (cut, kind), {"_layer_type": None}) if same else None
    return None
