"""Segment attention on the CPU: flash attention per block, merged by logsumexp. No mask over the prompt is ever built.

Legend: B batch, A query heads, G key/value heads, R = A / G query heads per key/value head, K tokens, D head
size, n rows of a block, p keys of a block's prefix.

A block's rows see their own block causally and a prefix (sinks and context, or everything before for the
question and for text between videos) completely. Both parts are flash attention; their results are merged exactly,
as in Star Attention and ring attention. Small segments share a block, in which a small mask keeps them apart: scenes
of which a dozen tokens are left would spend more on calls than on attention.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from segmo.runtime.attention.cpu_flash import cpu_flash
from segmo.runtime.attention.reference import dense_mask
from segmo.runtime.schedule import RowSchedule, unpack

MERGED_ROWS = 256  # rows merged at a time, so that their fp32 copies stay in a core's cache
SHARED_ROWS = 64  # rows up to which neighbouring segments share a block


def _flash(
    q_GRnD: Tensor, k_GpD: Tensor, v_GpD: Tensor, scale: float, causal: bool = False, mask_np: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output (G, R, n, D) and logsumexp (G, R, n).

    Key/value heads are the batch and the query heads that share one are the heads, so a key/value head is
    shared by an expanded (stride 0) view and never copied.
    """
    repeats = q_GRnD.shape[1]
    k_GRpD, v_GRpD = (x[:, None].expand(-1, repeats, -1, -1) for x in (k_GpD, v_GpD))
    return cpu_flash(q_GRnD, k_GRpD, v_GRpD, scale, causal, mask_np)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
    """Attention over the union of two disjoint key sets, computed in fp32, in the dtype of ``out_a``."""
    weight_b = torch.sigmoid(lse_b.float() - lse_a.float())[..., None]
    return torch.lerp(out_a.float(), out_b.float(), weight_b).to(out_a.dtype)


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
    return torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)


def _block_mask(row: RowSchedule, start: int, ends: tuple[int, ...]) -> Tensor | None:
    if len(ends) == 1:
        return None
    context = row.context[bisect_left(row.context, start) : bisect_left(row.context, ends[-1])]
    return _small_mask(tuple(end - start for end in ends), tuple(at - start for at in context))


def _row_attention(
    q_GRKD: Tensor, k_GKD: Tensor, v_GKD: Tensor, row: RowSchedule, scale: float, out_GRKD: Tensor
) -> None:
    """Writes one row's attention into ``out_GRKD``."""

    def block(start: int, end: int, prefix: tuple[Tensor, Tensor] | None, mask: Tensor | None = None) -> None:
        q_GRnD, out_GRnD, own = q_GRKD[:, :, start:end], out_GRKD[:, :, start:end], slice(start, end)
        parts = [*_flash(q_GRnD, k_GKD[:, own], v_GKD[:, own], scale, mask is None, mask)]
        if prefix is None:
            out_GRnD.copy_(parts[0])
            return
        parts += _flash(q_GRnD, *prefix, scale)
        for at in range(0, end - start, MERGED_ROWS):
            rows = slice(at, at + MERGED_ROWS)
            out_GRnD[:, :, rows] = merge(*(part[:, :, rows] for part in parts))

    if len(row.segment_ends) <= 1:  # nothing is hidden but the future
        if row.end > row.start:
            block(row.start, row.end, None)
        return

    seen = [*range(row.start, row.sink_end), *row.context]
    shared_k, shared_v = k_GKD[:, seen], v_GKD[:, seen]
    if row.sink_end > row.start:
        block(row.start, row.sink_end, None)
    for start, ends in _segment_blocks(row):
        visible = row.sink_end - row.start + bisect_left(row.context, start)
        prefix = (shared_k[:, :visible], shared_v[:, :visible]) if visible else None
        block(start, ends[-1], prefix, _block_mask(row, start, ends))
    for start, end in (*row.turns, (row.query_start, row.end)):  # rows of a turn are few: those above are overwritten
        if end > start:
            before = slice(row.start, start)
            block(start, end, (k_GKD[:, before], v_GKD[:, before]))


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
