"""Sizes after a cut, worked out from sizes before it: no graph, no cut, only numbers and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from segmo.passes.graph import concrete, example


def hint_tensor(value: Tensor, unknown: int) -> Tensor:
    """A fake tensor of the size that a traced tensor had; call under a fake mode.

    ``unknown`` stands in for a size that depends on the data (rows picked by a mask). What is gathered by it is counted
    again when it runs, so a wrong guess cannot pass.
    """
    size = [unknown if concrete(s) is None else concrete(s) for s in value.shape]
    stride = [concrete(s) for s in value.stride()]
    if any(s is None for s in stride):
        return torch.empty(size, dtype=value.dtype, device=value.device)
    return torch.empty_strided(size, stride, dtype=value.dtype, device=value.device)


def reshaped_dims(old_in: Sequence[int], new_in: Sequence[int], old_out: Sequence[int]) -> list[int]:
    """Output sizes of a reshape when its input sizes change, by matching groups of equal product from the left.

    Raises:
        ValueError: a group's product no longer splits into the other output sizes.
    """
    new_out = list(old_out)
    i = o = 0
    while i < len(old_in) and o < len(old_out):
        i_end, o_end = i + 1, o + 1
        left, right = old_in[i], old_out[o]
        while left != right:
            if left < right and i_end < len(old_in):
                left *= old_in[i_end]
                i_end += 1
            elif o_end < len(old_out):
                right *= old_out[o_end]
                o_end += 1
            else:
                raise ValueError("sizes do not match")
        changed = [d for d in range(i, i_end) if old_in[d] != new_in[d]]
        if changed:
            _settle(new_out, (o, o_end), old_in[changed[0]], new_in[changed[0]], len(changed))
        i, o = i_end, o_end
    return new_out


def _settle(new_out: list[int], group: tuple[int, int], old: int, new: int, changed: int) -> None:
    """Rescales the one output size of a group that is a multiple of the old length."""
    places = [d for d in range(*group) if new_out[d] % old == 0]
    parts = [d for d in range(*group) if new_out[d] * new % old == 0 and new_out[d] > 1]
    if changed == 1 and not places and len(parts) == 1:  # several rows for each token, one after the other
        new_out[parts[0]] = new_out[parts[0]] * new // old
        return
    if changed != 1 or not places:
        raise ValueError("the shortened dimension is split")
    exact = [d for d in places if new_out[d] == old]
    place = exact[0] if exact else places[0]
    new_out[place] = new_out[place] // old * new


def index_of(key: Any, dim: int, rank: int) -> Any:
    """The part of an index that picks from dimension ``dim`` of a tensor."""
    items = list(key) if isinstance(key, (tuple, list)) else [key]
    items = [item for item in items if item is not None]  # a new dimension picks from none
    if any(item is Ellipsis for item in items):
        at = next(place for place, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - len(items) + 1)
    return items[dim] if dim < len(items) else slice(None)


def settled_bound(bound: Any) -> Any:
    """A bound of a slice: a plain number where it is the same in every call, symbolic otherwise."""
    value = example(bound) if isinstance(bound, Node) else bound
    known = value.node.maybe_as_int() if isinstance(value, torch.SymInt) else None
    return value if known is None else known
