"""A stretch of a graph in which each row is computed from itself alone, run on some hundred rows after another.

Between two attentions a decoder writes and reads a dozen tensors of the prompt's length, each of them from memory and
back. On some hundred rows they stay in the processor's caches (strip-mining; Wolfe, More iteration space tiling, 1989).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Rows of a tile. On two cores 256 to 1,024 were equally fast with a hidden size of 896 and one of 3,584; each further
# core wants rows of its own. Tiles of some other number (517 in place of 512) lose all that they gain, because products
# want rows in multiples of their own tiles: so what is left over is a small tile at the end.
ROWS, ROWS_OF_THREAD = 1024, 512

Axes = tuple[int | None, ...]  # of each tensor, where its rows are, counted from its last axis; None: it has none


def tile_rows() -> int:
    """Rows of a tile on this machine, with the threads that PyTorch has now."""
    return max(ROWS, ROWS_OF_THREAD * torch.get_num_threads())


def in_row_tiles(
    body: Callable[..., tuple[Tensor, ...]], inputs: Axes, outputs: tuple[int, ...], rows: int, *args: Any
) -> tuple[Tensor, ...]:
    """``body(*args)``, tile after tile.

    Args:
        body: computes each row of its results from the same row of its inputs.
        inputs: of each argument.
        outputs: of each result.
        rows: of a tile; 0 for as many as this machine likes.
        args: tensors, and whatever else it takes.
    """
    counts = {x.shape[axis] for x, axis in zip(args, inputs, strict=True) if axis is not None}
    count, rows = max(counts), rows or tile_rows()
    if count < 2 * rows or not counts <= {1, count}:
        return body(*args)
    results: list[Tensor] = []
    for start in range(0, count, rows):
        length = min(rows, count - start)
        parts = body(*(_part(x, axis, start, length, count) for x, axis in zip(args, inputs, strict=True)))
        if not results:
            if any(part.shape[axis] != length for part, axis in zip(parts, outputs, strict=True)):
                return body(*args)
            results = [_like(part, axis, count) for part, axis in zip(parts, outputs, strict=True)]
        for whole, part, axis in zip(results, parts, outputs, strict=True):
            whole.narrow(axis, start, length).copy_(part)
    return tuple(results)


def _part(x: Any, axis: int | None, start: int, length: int, count: int) -> Any:
    """The rows of a tile; what has one row, or none, is the same for all."""
    return x if axis is None or x.shape[axis] != count else x.narrow(axis, start, length)


def _like(part: Tensor, axis: int, count: int) -> Tensor:
    """Memory for so many rows, with its axes in the order in which they lie in ``part``."""
    size = [*part.shape]
    size[axis] = count
    order = sorted(range(part.dim()), key=part.stride, reverse=True)
    return part.new_empty([size[dim] for dim in order]).permute(_inverse(order))


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
