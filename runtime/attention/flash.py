"""Segment attention on the CPU: flash attention block by block. No mask over the prompt is ever built.

Legend: B batch, A query heads, G key/value heads, R = A / G query heads per key/value head, K tokens, D head
size, n rows of a block, p keys.

A block's rows see a prefix (sinks and context, or everything before for the question and for text between videos)
completely, and their own block causally. Small segments share a block, in which a small mask keeps them apart: scenes
of which a dozen tokens are left would spend more on calls than on attention.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from segmo.runtime.attention.chunks import Keys, attend
from segmo.runtime.attention.reference import dense_mask
from segmo.runtime.schedule import RowSchedule, unpack

SHARED_ROWS = 64  # rows up to which neighbouring segments share a block


def _segment_blocks(row: RowSchedule) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Start of each block of segments, and the ends of its segments: one large segment, or neighbouring small ones."""
    start = row.sink_end
    ends: tuple[int, ...] = ()
    for end in row.segment_ends:
        if ends and end - start > SHARED_ROWS:
            yield start, ends
            start, ends = ends[-1], ()
        ends = (*ends, end)
    yield start, ends


@lru_cache(maxsize=512)
def _small_mask(ends: tuple[int, ...], context: tuple[int, ...]) -> Tensor:
    """Of a block of segments that begins at 0: 0 where a row may see a key and -inf where it may not, (n, n) float32.

    Every layer of a prefill asks for the same ones.
    """
    visible = dense_mask(RowSchedule(0, 0, ends, ends[-1], context), ends[-1])
    return torch.zeros(visible.shape, dtype=torch.float32).masked_fill_(~visible, -torch.inf)


def _block_mask(row: RowSchedule, start: int, ends: tuple[int, ...]) -> Tensor | None:
    if len(ends) == 1:
        return None
    context = row.context[bisect_left(row.context, start) : bisect_left(row.context, ends[-1])]
    return _small_mask(tuple(end - start for end in ends), tuple(at - start for at in context))


class _Visible:
    """The keys of one block after the other: the prefix, which grows, and behind it the block's own."""

    def __init__(self, keys: Keys, row: RowSchedule, most: int) -> None:
        self.keys, self.row = keys, row
        self.prefix = torch.tensor([*range(row.start, row.sink_end), *row.context], dtype=torch.long)
        self.filled = 0
        k_GpD, v_GpD = (x.new_empty(x.shape[0], len(self.prefix) + most, x.shape[2]) for x in keys)
        self.buffers = (k_GpD, v_GpD)

    def to(self, start: int, end: int) -> Keys:
        """What rows of the block see; blocks are asked for in order."""
        before = self.row.sink_end - self.row.start + bisect_left(self.row.context, start)
        count, new = before + end - start, self.prefix[self.filled : before]
        for buffer, x in zip(self.buffers, self.keys, strict=True):
            buffer[:, self.filled : before] = x.index_select(1, new)
            buffer[:, before:count] = x[:, start:end]
        self.filled = before
        return self.buffers[0][:, :count], self.buffers[1][:, :count]


def _row_attention(
    q_GRKD: Tensor, k_GKD: Tensor, v_GKD: Tensor, row: RowSchedule, scale: float, out_GRKD: Tensor
) -> None:
    """Writes one row's attention into ``out_GRKD``."""

    def block(start: int, end: int, keys: Keys | None = None, own_nn: Tensor | None = None) -> None:
        """Rows that see these keys, or everything before them."""
        keys = keys or (k_GKD[:, row.start : end], v_GKD[:, row.start : end])
        if end > start:
            attend(q_GRKD[:, :, start:end], keys, scale, out_GRKD[:, :, start:end], own_nn)

    if len(row.segment_ends) <= 1:  # nothing is hidden but the future
        block(row.start, row.end)
        return
    block(row.start, row.sink_end)
    blocks = list(_segment_blocks(row))
    visible = _Visible((k_GKD, v_GKD), row, max(ends[-1] - start for start, ends in blocks))
    for start, ends in blocks:
        block(start, ends[-1], visible.to(start, ends[-1]), _block_mask(row, start, ends))
    for start, end in (*row.turns, (row.query_start, row.end)):  # rows of a turn are few: those above are overwritten
        block(start, end)


def segment_attention(q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, schedule: Tensor, scale: float) -> Tensor:
    """Segment attention by flash attention per block, (B, A, K, D). Rows of padding are zero."""
    batch, heads, length, _ = q_BAKD.shape
    groups = k_BGKD.shape[1]
    # Laid out as (B, K, A, D): the model transposes to that next, and then has nothing to copy.
    out = q_BAKD.new_empty(batch, length, heads, v_BGKD.shape[3]).transpose(1, 2)
    for index, row in enumerate(unpack(schedule)):
        out[index, :, : row.start] = 0
        out[index, :, row.end :] = 0
        _row_attention(
            torch.unflatten(q_BAKD[index], 0, (groups, -1)),
            k_BGKD[index],
            v_BGKD[index],
            row,
            scale,
            torch.unflatten(out[index], 0, (groups, -1)),
        )
    return out
