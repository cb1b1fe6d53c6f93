"""Where a call holds a length as a literal, or asks for places in the prompt: what it has to say behind the cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from segmo.compat.operators import UNKNOWN_SIZE
from segmo.passes.cut.renew import Renewal, multiple
from segmo.passes.cut.state import lost
from segmo.passes.graph import concrete, example
from segmo.passes.sizes import index_of, reshaped_dims, settled_bound

SHAPE_CALLS = {
    "view", "reshape", "expand",
    torch.reshape, torch.Tensor.view, torch.Tensor.reshape, torch.Tensor.expand,
}  # fmt: skip

PICKS = {"topk", torch.topk}


def mend_shape(cut: Renewal, node: Node) -> None:
    """Replaces literal lengths of a ``view``, ``reshape`` or ``expand`` that come from a shortened dimension.

    Lengths that are nodes have been renewed already.
    """
    source = node.args[0]
    if not isinstance(source, Node) or not cut.changed_dims(source):
        return
    flat = len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
    given: Any = node.args[1] if flat else node.args[1:]
    lengths: list[Any] = list(given)
    literal = [d for d, length in enumerate(lengths) if not isinstance(length, Node) or length not in cut.after]
    old_in = [int(concrete(s)) for s in example(source).shape]
    new_in, old_out = list(cut.value(source).shape), [int(concrete(s)) for s in example(node).shape]
    known: list[Any] = [cut.value(length) if isinstance(length, Node) else length for length in lengths]
    if node.target in ("expand", torch.Tensor.expand):
        pad = len(old_out) - len(old_in)
        new_out = [
            new_in[d - pad] if d >= pad and old_in[d - pad] != new_in[d - pad] else size
            for d, size in enumerate(old_out)
        ]
    elif math.prod(known) == math.prod(new_in):
        return  # its lengths are computed, and fit
    else:
        try:
            new_out = reshaped_dims(old_in, new_in, old_out)
        except ValueError as error:
            if len(literal) < len(lengths) or -1 in lengths:
                return  # its lengths are computed, and trying them will tell
            raise lost(str(error), node) from error
    for d, (before, now) in enumerate(zip(old_out, new_out, strict=True)):
        if before != now and d in literal and lengths[d] != -1:
            lengths[d] = multiple(cut, now, node)
    node.args = (source, tuple(lengths)) if flat else (source, *lengths)


def mend_count(cut: Renewal, node: Node) -> None:
    """Bounds the number of a ``topk`` along a shortened dimension by what is left there.

    A model that picks no more keys than there are has compared the two numbers while it was traced.
    """
    source, count = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs["k"]
    if not isinstance(source, Node) or not isinstance(count, int):
        return
    dim = int(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", -1)) % example(source).dim()  # type: ignore[arg-type]  # the dimension is a number
    if dim not in cut.changed_dims(source):
        return
    with cut.graph.inserting_before(node):
        size = cut.graph.call_function(torch.ops.aten.sym_size.int, (source, dim))
        bound = cut.graph.call_function(torch.sym_min, (count, size))
    for made, value in ((size, cut.value(source).shape[dim]), (bound, min(count, cut.value(source).shape[dim]))):
        made.meta["example_value"] = cut.values[made] = value
        cut.after.add(made)
    node.args = (source, bound, dim, *node.args[3:])
    node.kwargs = {name: value for name, value in node.kwargs.items() if name not in ("k", "dim")}


def mend_write(cut: Renewal, node: Node) -> None:
    """Checks that what is written into places of a tensor has as many values as there are places behind the cut.

    Fake tensors do not. Numbers from 0 on are made again for the places that there are: the
    inverse of a permutation, in a graph for one length.

    Raises:
        DoesNotApply: the lengths differ.
    """
    target, places, given = node.args
    if not isinstance(given, Node) or not isinstance(cut.value(given), Tensor):
        return
    try:
        with cut.mode:
            there = cut.value(target)[map_arg(places, cut.value)]  # type: ignore[arg-type]  # a tensor's node
    except UNKNOWN_SIZE:
        return
    size = tuple(there.shape)
    if _fits(cut.value(given).shape, size):
        return
    if given.target is not torch.arange or len(given.args) != 1 or len(size) != 1:
        raise lost(f"{given.name} has another length than the places that it is written to", node)
    length = multiple(cut, size[0], node)
    with cut.graph.inserting_before(node):
        made = cut.graph.call_function(torch.arange, (length,), given.kwargs)
    made.meta.update(example_value=example(given), stack_trace=node.meta.get("stack_trace"))
    cut.execute(made)
    cut.after.add(made)
    node.args = (target, places, made)


def _fits(given: Sequence[int], places: Sequence[int]) -> bool:
    """Whether a tensor of one shape can be broadcast to another."""
    pairs = zip(reversed(given), reversed(places), strict=False)
    return len(given) <= len(places) and all(size in (1, other) for size, other in pairs)


def asks_for_places(cut: Renewal, node: Node) -> list[int]:
    """Shortened dimensions that an index asks for places of the whole prompt."""
    source = node.args[0]
    if not isinstance(source, Node) or not isinstance(example(source), Tensor):
        return []
    rank = example(source).dim()
    return [d for d in cut.changed_dims(source) if not _means_the_same(cut, index_of(node.args[1], d, rank))]


def _means_the_same(cut: Renewal, item: Any) -> bool:
    """Whether an index asks a shortened dimension for all its tokens, or for the last one, which is never dropped.

    An index that was computed behind the cut counts the tokens there. Any other counts places of the whole prompt.
    """
    if isinstance(item, Node) and (item in cut.after or cut.is_counter(item)):
        return True
    if not isinstance(item, slice):
        return isinstance(item, int) and item == -1
    start, stop = settled_bound(item.start), settled_bound(item.stop)
    whole = (start is None or (isinstance(start, int) and start == 0)) and (stop is None or bool(stop == cut.symbol))
    return item.step in (None, 1) and (whole or (isinstance(start, int) and start == -1 and stop is None))
