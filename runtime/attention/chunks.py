"""Attention of rows over the keys before them, chunk by chunk, by torch's flash attention on the CPU.

Legend: G key/value heads, R query heads per key/value head, n rows, p keys, D head size, r query heads that become
rows of one head, H = R / r, m = n * r.

Three things about torch's kernel decide how:

- From 768 rows on its tiles are larger, which is a tenth faster, and a tile of few rows costs as much as a full one. So
  query heads that share keys are rows of one head, as in multi-query attention (Shazeer, 2019).
- Its causal form computes whole tiles of 512 keys, which saves nothing in segments of some hundred rows. So rows are
  taken in chunks, each over the keys up to its last row, and only a chunk's triangle is wasted.
- A mask costs a tenth. With many keys only the triangle is masked, in a call of its own, and both results are merged
  exactly, as in Star Attention and ring attention; with few keys the merge would cost more.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from segmo.runtime.attention.cpu_flash import cpu_flash

LARGE = 768  # rows of a head from which torch's kernel takes tiles of 256 rows, instead of 64 or 32
LARGE_TILE, SMALL_TILE = 256, 64
CHUNK = 192  # rows of a chunk beyond which its triangle costs more than larger tiles gain; none has twice as many
MASKED_KEYS = 1536  # keys up to which one call with a mask is faster than two and a merge

Keys = tuple[Tensor, Tensor]  # keys and values, (G, p, D)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
    """Attention over the union of two disjoint key sets, computed in fp32, in the dtype of ``out_a``."""
    weight_b = torch.sigmoid(lse_b.float() - lse_a.float())[..., None]
    return torch.lerp(out_a.float(), out_b.float(), weight_b).to(out_a.dtype)


def attend(q_GRnD: Tensor, keys: Keys, scale: float, out_GRnD: Tensor, own_nn: Tensor | None = None) -> None:
    """Writes the attention of rows that see all keys before their own, and their own causally.

    Args:
        q_GRnD: queries.
        keys: whatever stands before the rows, and then their own n keys.
        out_GRnD: where the result goes.
        own_nn: 0 where a row sees an own key and -inf where not, float32, in place of the causal rule.
    """
    groups, repeats, rows, _ = q_GRnD.shape
    before = keys[0].shape[1] - rows
    inside = _heads_in_rows(groups, repeats, rows)
    if own_nn is not None:
        _chunk(q_GRnD, keys, scale, out_GRnD, inside, own_nn)
        return
    chunks = max(1, rows // _chunk_rows(inside))
    for start, end in pairwise(rows * chunk // chunks for chunk in range(chunks + 1)):
        k_GpD, v_GpD = (x[:, : before + end] for x in keys)
        _chunk(q_GRnD[:, :, start:end], (k_GpD, v_GpD), scale, out_GRnD[:, :, start:end], inside)


def _heads_in_rows(groups: int, repeats: int, rows: int) -> int:
    """r: all heads of a group, unless some of the processor's threads would then have no tile."""
    flat = repeats * min(rows, CHUNK)
    tiles = groups * flat / (LARGE_TILE if flat >= LARGE else SMALL_TILE)
    return repeats if tiles >= torch.get_num_threads() else 1


def _chunk_rows(inside: int) -> int:
    """Rows of a chunk, at least: its tiles are large unless its triangle would be too."""
    return min(CHUNK, -(-LARGE // inside))


@lru_cache(maxsize=4)
def _staircase(rows: int, inside: int) -> Tensor:
    """Mask of rows of which the last one sees all keys and each one before it one key less, (m, p) float32."""
    keys = max(rows, MASKED_KEYS)
    hidden = torch.ones(rows, keys, dtype=torch.bool).triu_(keys - rows + 1)
    return torch.zeros(rows, keys, dtype=torch.float32).masked_fill_(hidden, -torch.inf).repeat_interleave(inside, 0)


def _triangle(rows: int, keys: int, inside: int) -> Tensor:
    """That of a chunk, (m, p): the corner of a larger one, which all chunks and layers share."""
    return _staircase(SMALL_TILE * -(-rows // SMALL_TILE), inside)[-rows * inside :, -keys:]


def _own_mask(own_nn: Tensor | None, rows: int, keys: int, inside: int) -> Tensor:
    """What the rows see of so many last keys, (m, p)."""
    if own_nn is None:
        return _triangle(rows, keys, inside)
    return torch.nn.functional.pad(own_nn.repeat_interleave(inside, 0), (keys - rows, 0))


def _chunk(
    q_GRnD: Tensor, keys: Keys, scale: float, out_GRnD: Tensor, inside: int, own_nn: Tensor | None = None
) -> None:
    """One chunk of rows, by one call or by two and a merge."""
    rows, count = q_GRnD.shape[2], keys[0].shape[1]
    q_GHmD = torch.unflatten(q_GRnD, 1, (-1, inside)).transpose(2, 3).flatten(2, 3)
    if count <= MASKED_KEYS or count == rows:
        out_GHmD, _ = _flash(q_GHmD, keys, scale, _own_mask(own_nn, rows, count, inside))
    else:
        (k_GpD, k_GnD), (v_GpD, v_GnD) = (torch.split(x, [count - rows, rows], dim=1) for x in keys)
        near = _flash(q_GHmD, (k_GnD, v_GnD), scale, _own_mask(own_nn, rows, rows, inside))
        out_GHmD = merge(*_flash(q_GHmD, (k_GpD, v_GpD), scale), *near)
    torch.unflatten(out_GRnD, 1, (-1, inside)).copy_(torch.unflatten(out_GHmD, 2, (rows, inside)).transpose(2, 3))


def _flash(q_GHmD: Tensor, keys: Keys, scale: float, mask_mp: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output (G, H, m, D) and logsumexp (G, H, m). Heads share keys by an expanded view; nothing is copied."""
    k_GHpD, v_GHpD = (x[:, None].expand(-1, q_GHmD.shape[1], -1, -1) for x in keys)
    return cpu_flash(q_GHmD, k_GHpD, v_GHpD, scale, mask_np=mask_mp)
