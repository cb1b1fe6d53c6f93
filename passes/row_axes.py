"""Where the rows of a call's result are, if each of them is computed from the same row of its operands alone.

Axes are counted from the last one, as broadcasting does: -2 in (B, N, H) and in (B, A, N, D).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from segmo.passes.effects import may_write
from segmo.passes.graph import concrete, example, is_plain

F = torch.nn.functional
Axis = int | tuple[int, ...]  # a tuple for a call with several results
Known = Mapping[Node, Axis]


@dataclass
class Followed:
    """A call that was followed.

    Attributes:
        axis: where its rows are.
        aligned: operands from elsewhere that have these rows, or one for all, and where.
        sizes: places among its arguments where the number of rows stands.
        view: its result may lie in the memory of its first operand.
    """

    axis: Axis
    aligned: dict[Node, int] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    view: bool = False


def follow(node: Node, known: Known) -> Followed | None:
    """Follows a call whose operands have rows; None where it may compute a row from others, or none has."""
    rule = _RULES.get(node.target) if node.op in ("call_function", "call_method") else None
    source = node.args[0] if node.args else None
    if rule is None or may_write(node) or not any(each in known for each in node.all_input_nodes):
        return None
    if not all(map(_is_known, (node, *node.all_input_nodes))):
        return None
    if rule in _OF_ONE and (source not in known or any(each in known for each in _tensors(node)[1:])):
        return None
    if rule in _WORDS and not node.kwargs.keys() <= _WORDS[rule]:
        return None
    found = rule(node, known)
    if found is None or not _keeps_rows(node, found, known):
        return None
    found.view = rule in _VIEWS
    return found


def is_fresh(node: Node) -> bool:
    """Whether the result of a call that writes nothing is surely memory of its own."""
    rule = _RULES.get(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return all(each.alias_info is None for each in node.target._schema.returns)
    return node.target is F.scaled_dot_product_attention or (rule is not None and rule not in _VIEWS)


def _keeps_rows(node: Node, found: Followed, known: Known) -> bool:
    """Whether a result is as long where its rows are to be as one of the operands is there."""
    operand = next(each for each in node.all_input_nodes if each in known)
    before, after = _lengths(example(operand), known[operand]), _lengths(example(node), found.axis)
    return None not in after and set(after) <= set(before)


def _lengths(value: Any, axis: Axis) -> list[int | None]:
    values, axes = (value, axis) if isinstance(axis, tuple) else ((value,), (axis,))
    if not all(isinstance(each, Tensor) for each in values) or len(values) != len(axes):
        return [None]
    return [concrete(each.shape[at]) if each.dim() >= -at else None for each, at in zip(values, axes, strict=True)]


def _is_known(node: Node) -> bool:
    """Whether a value was traced, as that of a node was not that a pass has put in, and its tensors are plain ones.

    Quantised weights are subclasses, of which some scale the operand by the largest value in all of its rows.
    """
    value = example(node)
    tensors = [each for each in pytree.tree_leaves(value) if isinstance(each, Tensor)]
    return value is not None and all(map(is_plain, tensors))


def _tensors(node: Node) -> list[Node]:
    return [each for each in node.all_input_nodes if isinstance(example(each), (Tensor, tuple, list))]


def _elementwise(node: Node, known: Known) -> Followed | None:
    """Operands are laid over each other from the last axis on: what is as long as the rows has these rows."""
    tensors = _tensors(node)
    axes = {known[each] for each in tensors if each in known}
    axis = next(iter(axes))
    if len(axes) != 1 or not isinstance(axis, int) or not all(isinstance(example(each), Tensor) for each in tensors):
        return None
    aligned = {each: axis for each in tensors if each not in known and _has_axis(each, axis)}
    return Followed(axis, aligned)


def _has_axis(node: Node, axis: int) -> bool:
    shape = example(node).shape
    return len(shape) >= -axis and not (isinstance(shape[axis], int) and shape[axis] == 1)


def _same(node: Node, known: Known) -> Followed | None:
    """Another dtype or layout; what else it takes is no tensor."""
    axis = known[node.args[0]]  # type: ignore[index]  # a node
    return Followed(axis) if len(_tensors(node)) == 1 else None


def _typed(node: Node, known: Known) -> Followed | None:
    """``type_as``: of the other tensor nothing but its dtype is read."""
    source, other = node.args
    axis = known.get(source)  # type: ignore[arg-type]  # a node
    return Followed(axis) if isinstance(axis, int) and isinstance(known.get(other, -1), int) else None  # type: ignore[arg-type]


def _kept(node: Node, known: Known) -> Followed | None:
    """``dropout`` that drops nothing."""
    return _same(node, known) if _argument(node, 2, "training") is False else None


def _linear(node: Node, known: Known) -> Followed | None:
    axis, weight = known[node.args[0]], _argument(node, 1, "weight")  # type: ignore[index]
    flat = isinstance(weight, Node) and example(weight).dim() == 2
    return Followed(axis) if flat and isinstance(axis, int) and axis < -1 else None


def _normed(node: Node, known: Known) -> Followed | None:
    """Over the last axes, which must not be the rows."""
    axis, shape = known[node.args[0]], _argument(node, 1, "normalized_shape")  # type: ignore[index]
    over = len(shape) if isinstance(shape, (tuple, list)) else None
    return Followed(axis) if over and isinstance(axis, int) and axis < -over else None


def _reduced(node: Node, known: Known) -> Followed | None:
    source: Any = node.args[0]
    axis, rank = known[source], example(source).dim()
    dims = _argument(node, 1, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or not isinstance(axis, int) or not all(isinstance(dim, int) for dim in dims):
        return None
    dims = {dim % rank - rank for dim in dims}
    kept = _argument(node, 2, "keepdim") or False
    if axis in dims or not isinstance(kept, bool) or not isinstance(example(node), Tensor):
        return None
    return Followed(axis if kept else axis + sum(dim > axis for dim in dims))


def _softmax(node: Node, known: Known) -> Followed | None:
    source: Any = node.args[0]
    axis, rank, dim = known[source], example(source).dim(), _argument(node, 1, "dim")
    return Followed(axis) if isinstance(dim, int) and dim % rank - rank != axis else None


def _joined(node: Node, known: Known) -> Followed | None:
    """``cat`` along another axis: its operands are as long in every other one."""
    rank, dim = example(node).dim(), _argument(node, 1, "dim") or 0
    found = _elementwise(node, known)
    alike = all(example(each).dim() == rank for each in _tensors(node))
    return found if found and isinstance(dim, int) and alike and dim % rank - rank != found.axis else None


def _parted(node: Node, known: Known) -> Followed | None:
    """``chunk`` and its like along another axis."""
    source: Any = node.args[0]
    axis, rank = known[source], example(source).dim()
    place = 1 if _name(node) == "unbind" else 2
    dim = _argument(node, place, "dim") or 0
    if not isinstance(axis, int) or not isinstance(dim, int) or dim % rank - rank == axis:
        return None
    if place == 1 and dim % rank - rank > axis:
        axis += 1
    return Followed((axis,) * len(example(node)))


def _moved(node: Node, known: Known) -> Followed | None:
    """``transpose`` and ``permute``: found by what they do to numbers in the axes' places."""
    source: Any = node.args[0]
    axis, rank = known[source], example(source).dim()
    dims = [each for each in pytree.tree_leaves(node.args[1:]) if isinstance(each, int)]
    if not isinstance(axis, int):
        return None
    order = list(range(rank))
    if _name(node) == "permute":
        order = [dim % rank for dim in dims]
    elif len(dims) == 2:
        first, second = (dim % rank for dim in dims)
        order[first], order[second] = order[second], order[first]
    return Followed(order.index(axis % rank) - rank) if len(order) == rank else None


def _widened(node: Node, known: Known) -> Followed | None:
    """``unsqueeze``."""
    source: Any = node.args[0]
    axis, rank, dim = known[source], example(source).dim(), _argument(node, 1, "dim")
    if not isinstance(axis, int) or not isinstance(dim, int):
        return None
    return Followed(axis - (dim % (rank + 1) - rank - 1 > axis - 1))


def _reshaped(node: Node, known: Known) -> Followed | None:
    """Rows that stay one axis, with as many elements before it; where their number stands it has to be the tile's."""
    source: Any = node.args[0]
    axis = known[source]
    before, after = ([concrete(size) for size in example(each).shape] for each in (source, node))
    if not isinstance(axis, int) or None in before or None in after or before[axis] == 1:
        return None
    ahead = math.prod(before[: len(before) + axis])
    places = [at for at, size in enumerate(after) if size == before[axis] and math.prod(after[:at]) == ahead]
    if len(places) != 1:
        return None
    sizes = _sizes(node) if _name(node) in ("view", "reshape") else ()
    if sizes is None or (sizes and len(sizes) != len(after)):
        return None
    return Followed(places[0] - len(after), sizes=(places[0],) if sizes and sizes[places[0]] != -1 else ())


def _split(node: Node, known: Known) -> Followed | None:
    """``unflatten`` of another axis."""
    source: Any = node.args[0]
    axis, rank, dim = known[source], example(source).dim(), _argument(node, 1, "dim")
    apart = isinstance(dim, int) and dim % rank - rank != axis
    return _reshaped(node, known) if apart else None


def _sizes(node: Node) -> Sequence[Any] | None:
    """What a tensor is reshaped to; None where that is no list of sizes."""
    given = node.args[1:]
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    return given if given and all(isinstance(each, (int, Node)) for each in given) and not node.kwargs else None


def _picked(node: Node, known: Known) -> Followed | None:
    """``x[...]`` of slices, numbers and new axes, with all rows."""
    source, key = node.args
    assert isinstance(source, Node)
    axis, value = known[source], example(source)
    if isinstance(axis, tuple):
        return Followed(axis[key]) if isinstance(key, int) else None
    items = list(key) if isinstance(key, tuple) else [key]
    if any(isinstance(item, (Node, Tensor, list, bool)) for item in items):
        return None
    taken = sum(item is not None and item is not Ellipsis for item in items)
    at = next((place for place, item in enumerate(items) if item is Ellipsis), len(items))
    items[at : at + 1] = [slice(None)] * (value.dim() - taken)
    return _placed(items, axis % value.dim())


def _placed(items: Sequence[Any], axis: int) -> Followed | None:
    """Where an axis is in the result of an index that has an item for each axis, and new ones between."""
    read, left = 0, None
    for place, item in enumerate(items):
        if item is None:
            continue
        if read == axis:
            left = None if item != slice(None) else items[place:]
        read += 1
    return None if left is None else Followed(-sum(not isinstance(item, int) for item in left))


def _argument(node: Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))


def _of(rule: Callable[[Node, Known], Followed | None], *targets: Any) -> dict[Any, Any]:
    """The rule for functions, and for methods by their names."""
    return dict.fromkeys(targets, rule)


_RULES: dict[Any, Callable[[Node, Known], Followed | None]] = {
    **_of(
        _elementwise,
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
        *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.rsqrt, torch.sqrt, torch.sigmoid),
        *(torch.tanh, torch.exp, torch.square, torch.where, torch.clamp, torch.relu, torch.abs),
        *(F.silu, F.gelu, F.relu, F.softplus, F.hardswish),
        *("add", "sub", "mul", "div", "neg", "pow", "rsqrt", "sqrt", "sigmoid", "tanh", "exp", "square", "clamp"),
    ),
    **_of(_same, "to", "float", "half", "bfloat16", "contiguous", "clone"),
    **_of(_typed, "type_as"),
    **_of(_kept, F.dropout),
    **_of(_linear, F.linear),
    **_of(_normed, F.layer_norm, F.rms_norm, torch.rms_norm),
    **_of(_reduced, "mean", "sum", torch.mean, torch.sum),
    **_of(_softmax, "softmax", torch.softmax, F.softmax),
    **_of(_joined, torch.cat),
    **_of(_parted, "chunk", "split", "unbind", torch.chunk, torch.split, torch.unbind),
    **_of(_moved, "transpose", "permute", torch.transpose, torch.permute),
    **_of(_widened, "unsqueeze", torch.unsqueeze),
    **_of(_reshaped, "view", "reshape", "flatten", torch.flatten),
    **_of(_split, "unflatten", torch.unflatten),
    **_of(_picked, operator.getitem),
}
# What a rule understands, if it is given by name; rules that are not here have no use for it.
_WORDS: dict[Any, set[str]] = {
    _kept: {"p", "training", "inplace"},
    _linear: {"weight", "bias"},
    _normed: {"normalized_shape", "weight", "bias", "eps"},
    _reduced: {"dim", "keepdim", "dtype"},
    _softmax: {"dim", "dtype", "_stacklevel"},
    _joined: {"dim"},
    _parted: {"dim", "chunks", "split_size", "split_size_or_sections"},
    _moved: set(),
    _widened: {"dim"},
}
# Rules that read one tensor with rows; what else the call takes has none.
_OF_ONE = (_same, _kept, _linear, _normed, _reduced, _softmax, _parted, _moved, _widened, _reshaped, _split, _picked)
# Rules of calls that may give memory of their operand: views, and conversions where there is nothing to convert.
_VIEWS = (_same, _typed, _kept, _parted, _moved, _widened, _reshaped, _split, _picked)
