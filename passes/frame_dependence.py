"""Which frames each row of a vision encoder's output depends on, by following one frame at a time through its graph.

A value is a tensor of flags: True where the element may depend on the frame that is followed. Each ATen operator has a
rule that gives the flags of its result from those of its arguments, and the rules only ever err by flagging too much,
so "row r does not depend on frame f" is certain for the graph at hand. An operator without a rule that a flag reaches
ends the analysis: what it does is not guessed.

The graph is one of a small input (:func:`segmo.upstream.record.record`). An encoder that treats larger inputs by other
code than smaller ones would not be seen through.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from segmo.passes.reasons import DoesNotApply, Miss

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Move elements without computing with them: the same call on the flags moves the flags.
_MOVES = _names(
    """permute transpose t unsqueeze squeeze expand slice select split split_with_sizes unbind
    cat stack clone contiguous alias detach flip roll repeat index index_select gather unfold narrow movedim
    pixel_shuffle pixel_unshuffle lift_fresh"""
)
_INDEXED = _names("index index_select gather")  # ... among them those that look into index tensors
_SHAPES = _names("view _unsafe_view reshape _reshape_alias")
_SAME = _names("_to_copy to type_as")  # another dtype
_POINTWISE = _names(
    """add sub rsub mul div neg abs exp log sqrt rsqrt pow reciprocal cos sin tanh erf sigmoid silu gelu relu hardswish
    leaky_relu clamp clamp_min clamp_max maximum minimum where masked_fill addcmul addcdiv lerp floor round eq ne lt
    le gt ge logical_and logical_or logical_not bitwise_and bitwise_or dropout native_dropout mish elu softplus
    square sign"""
)
_FRESH = _names("new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like")  # of a size alone
_ALONG = _names("softmax _softmax log_softmax _log_softmax cumsum")  # mixes one dimension, keeps the shape
_REDUCE = _names("sum mean amax amin any all var std linalg_vector_norm norm")
_LAYER_NORM = _names("native_layer_norm layer_norm")
_GROUP_NORM = _names("native_group_norm group_norm")
_PRODUCT = _names("mm bmm matmul addmm baddbmm")
_ATTENTION = _names(
    """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention
    _scaled_dot_product_attention_math"""
)
_PER_CHANNEL = _names(
    """upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bilinear2d_aa avg_pool2d max_pool2d
    max_pool2d_with_indices _adaptive_avg_pool2d adaptive_avg_pool2d"""
)


def frame_dependence(graph: Graph, owner_R: Tensor, frames: int, none_empty: bool = False) -> list[list[Tensor]]:
    """For each frame and each output of the graph, the rows that may depend on it, (rows,) bool.

    Args:
        graph: from :func:`segmo.upstream.record.record`; outputs have their rows in the first dimension.
        owner_R: frame of each row of the input ``pixels``.
        frames: number of frames.
        none_empty: the encoder is handed no picture of zeros alone, so that whether one is empty depends on no pixels.

    Raises:
        DoesNotApply: the pixels reach an operator that has no rule, or decide what is computed.
    """
    known = {node for node in graph.nodes if none_empty and _asks_whether_empty(node)}
    return [_follow(graph, owner_R == frame, known) for frame in range(frames)]


def mixed(depends: Sequence[Sequence[Tensor]], owner_R: Tensor) -> Miss | None:
    """Why frames cannot be told apart in an encoder's output, None if no row depends on another frame's pixels.

    Args:
        depends: from :func:`frame_dependence`.
        owner_R: frame of each row of the outputs, -1 for rows that belong to none.
    """
    for frame, outputs in enumerate(depends):
        if any(bool(rows[owner_R != frame].any()) for rows in outputs):
            return Miss.of("frames-mix")
    return None


def moved(error: float, close: float) -> Miss | None:
    """Why frames cannot be left out, when features then differ by more than rounding, None otherwise."""
    return None if error <= close else Miss.of("frame-place", f"{error:.1%}")


def _asks_whether_empty(node: Node) -> bool:
    """``(pixels == 0).sum(...) != values``: whether a picture holds something (SmolVLM fills up with pictures of 0)."""
    aten, count = torch.ops.aten, node.args[0] if node.args else None
    if node.target is not aten.ne.Scalar or not isinstance(count, Node) or count.target is not aten.sum.dim_IntList:
        return False
    zero = count.args[0]
    return isinstance(zero, Node) and zero.target is aten.eq.Scalar and zero.args[1] in (0,)


def _follow(graph: Graph, chosen_R: Tensor, known: Collection[Node]) -> list[Tensor]:
    flags: dict[Node, Any] = {}
    last_use = {source: node for node in graph.nodes for source in node.all_input_nodes}
    for node in graph.nodes:
        value = node.meta.get("example_value")
        if node.op == "placeholder":
            flags[node] = torch.zeros(value.shape, dtype=torch.bool)
            if node.target == "pixels":
                flags[node] |= chosen_R.view(-1, *[1] * (value.dim() - 1))
        elif node.op == "output":
            return [_any_but_first(flags[out]) for out in node.args[0]]
        elif node in known:
            flags[node] = _unflagged(value)
        else:
            flags[node] = _visit(node, flags)
        for source in node.all_input_nodes:
            if last_use[source] is node:
                del flags[source]
    raise AssertionError("a recorded graph has an output")


def _any_but_first(flags: Tensor) -> Tensor:
    return flags.flatten(1).any(1) if flags.dim() > 1 else flags


def _visit(node: Node, flags: dict[Node, Any]) -> Any:
    value: Any = node.meta.get("example_value")
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):  # an item of a result with several
        return flags[node.args[0]][node.args[1]]  # type: ignore[index]  # a node and a number
    if not any(_flagged(flags[source]) for source in node.all_input_nodes):
        return _unflagged(value)
    name = target.overloadpacket.__name__
    if name in ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero"):
        raise DoesNotApply(Miss.of("pixels-decide", name))
    if name == "index_add_" and _is_new(node):
        return _add_by_index(node, flags)
    rule = _rule(name)
    if rule is None or target._schema.is_mutable:
        raise DoesNotApply(Miss.of("unknown-operator", str(target)))

    def traced(source: Node) -> Any:
        return _Traced(flags[source], source)

    args, kwargs = map_arg((node.args, node.kwargs), traced)
    return rule(target, args, kwargs, value)


def _is_new(node: Node) -> bool:
    """Whether what a call changes is memory of its own, which nobody has looked at before."""
    changed: Any = node.args[0]
    made_by = getattr(changed.target, "overloadpacket", None)
    return made_by is not None and made_by.__name__ in _FRESH and next(iter(changed.users)) is node


def _add_by_index(node: Node, flags: dict[Node, Any]) -> Tensor:
    """Rows that are added up at places in new memory, as the mean over frames that stand for one (Kimi)."""
    changed, dim, index, source = node.args
    if bool(flags[index].any()):  # type: ignore[index]  # a node
        raise DoesNotApply(Miss.of("pixels-decide", str(node.target)))
    places = index.meta["example_value"].cpu()  # type: ignore[union-attr]
    counts = flags[changed].int().index_add(dim, places, flags[source].int())  # type: ignore[index]
    flags[changed] = counts > 0  # type: ignore[index]
    return flags[changed]  # type: ignore[index, no-any-return]


class _Traced:
    """A tensor argument: its flags, and its value where a rule has to look at it."""

    def __init__(self, flags: Tensor, node: Node) -> None:
        self.flags = flags
        self.value = node.meta["example_value"]


def _flagged(flags: Any) -> bool:
    return any(bool(leaf.any()) for leaf in pytree.tree_leaves(flags) if isinstance(leaf, Tensor))


def _unflagged(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: torch.zeros(t.shape, dtype=torch.bool), value)


def _tensors(args: Any) -> list[_Traced]:
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, _Traced)]


def _rule(name: str) -> Rule | None:
    for names, rule in _RULES:
        if name in names:
            return rule
    return None


# Rules


def _of_size(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    return _unflagged(value)


def _move(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """Index tensors enter as they are; if one of them depends on the pixels, so does what is picked."""

    def plain(leaf: Any) -> Any:
        if not isinstance(leaf, _Traced):
            return leaf
        if leaf.value.dtype in (torch.long, torch.int, torch.bool) and target.overloadpacket.__name__ in _INDEXED:
            if bool(leaf.flags.any()):
                raise DoesNotApply(Miss.of("pixels-decide", str(target)))
            return leaf.value.cpu()
        return leaf.flags

    moved_args, moved_kwargs = pytree.tree_map(plain, (args, kwargs))
    moved_kwargs = {name: item for name, item in moved_kwargs.items() if name not in ("dtype", "device", "layout")}
    return target(*moved_args, **moved_kwargs)


def _shape(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    return args[0].flags.reshape(value.shape)


def _same(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    return args[0].flags


def _pointwise(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    shapes = [leaf.flags.expand(_first(value).shape) for leaf in _tensors((args, kwargs))]
    out = torch.stack(shapes).any(0)
    return out if isinstance(value, Tensor) else [out for _ in value]


def _first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def _along(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    flags, dim = args[0].flags, args[1]
    return flags.any(dim, keepdim=True).expand(flags.shape)


def _reduce(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """Flags of what is reduced, found by the sizes that are left over: a dimension was kept, dropped, or became 1."""
    flags = args[0].flags
    dims = next((a for a in args[1:] if isinstance(a, (list, tuple))), kwargs.get("dim"))
    if dims is None and len(args) > 1 and isinstance(args[1], int) and not isinstance(args[1], bool):
        dims = [args[1]]
    dims = range(flags.dim()) if not dims else [d % flags.dim() for d in dims]
    kept = flags
    for dim in sorted(dims, reverse=True):
        kept = kept.any(dim, keepdim=True)
    if kept.numel() != _first(value).numel():
        raise DoesNotApply(Miss.of("unknown-operator", str(target)))
    return kept.reshape(_first(value).shape)


def _layer_norm(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """Mixes the last dimensions; weight and bias are no part of the pixels."""
    dims = list(range(-len(args[1]), 0))
    row = args[0].flags.flatten(-len(dims)).any(-1)
    out = row.view(*row.shape, *[1] * len(dims)).expand(args[0].flags.shape)
    if isinstance(value, Tensor):
        return out
    return [out, *[_spread(row, part) for part in value[1:]]]


def _spread(row: Tensor, part: Tensor) -> Tensor:
    return row.reshape(part.shape) if row.numel() == part.numel() else torch.full(part.shape, bool(row.any()))


def _group_norm(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """Mixes within a sample."""
    sample = args[0].flags.flatten(1).any(1)
    return pytree.tree_map_only(Tensor, lambda t: sample.view(-1, *[1] * (t.dim() - 1)).expand(t.shape), value)


def _product(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """(..., n, k) times (..., k, m), with something added or not."""
    *added, left, right = [leaf.flags for leaf in _tensors(args)][:3]
    out = left.any(-1, keepdim=True) | right.any(-2, keepdim=True)
    for more in added:
        out = out | more
    return out.expand(value.shape)


def _linear(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    if any(_flagged(leaf.flags) for leaf in _tensors((args[1:], kwargs))):
        raise DoesNotApply(Miss.of("unknown-operator", str(target)))
    return args[0].flags.any(-1, keepdim=True).expand(value.shape)


def _attention(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """A query's result holds that query and any key and value of its sample."""
    query, key, val = (part.flags for part in args[:3])
    extra = [leaf.flags.any() for leaf in _tensors((args[3:], kwargs))]
    seen = (key.flatten(1).any(1) | val.flatten(1).any(1)).view(-1, 1, 1)
    row = query.any(-1) | seen
    for flag in extra:
        row = row | flag
    if isinstance(value, Tensor):
        return row[..., None].expand(value.shape)
    out = row[..., None].expand(value[0].shape)
    rest = [torch.full(part.shape, bool(row.any())) if isinstance(part, Tensor) else part for part in list(value)[1:]]
    return [out, *rest]


def _convolution(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """Mixes channels, and places that the kernel covers at a time (patches of several frames may lie side by side)."""
    if any(_flagged(leaf.flags) for leaf in _tensors((args[1:], kwargs))):
        raise DoesNotApply(Miss.of("unknown-operator", str(target)))
    source, weight, _, stride, padding, dilation, transposed, _, _ = args
    if transposed:
        raise DoesNotApply(Miss.of("unknown-operator", str(target)))
    places = source.flags.any(1, keepdim=True).float()
    kernel = torch.ones(1, 1, *weight.value.shape[2:], dtype=torch.float32)
    reached = torch.convolution(places, kernel, None, stride, padding, dilation, False, [0] * len(stride), 1)
    return (reached > 0).expand(value.shape)


def _per_channel(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    plane = args[0].flags.flatten(2).any(2)[..., None, None]
    return pytree.tree_map_only(Tensor, lambda t: plane.expand(t.shape), value)


def _pad(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    return torch.nn.functional.pad(args[0].flags, list(args[1]), value=False)


_RULES: Sequence[tuple[frozenset[str], Rule]] = (
    (_FRESH, _of_size),
    (_MOVES, _move),
    (_SHAPES, _shape),
    (_SAME, _same),
    (_POINTWISE, _pointwise),
    (_ALONG, _along),
    (_REDUCE, _reduce),
    (_LAYER_NORM, _layer_norm),
    (_GROUP_NORM, _group_norm),
    (_PRODUCT, _product),
    (_names("linear"), _linear),
    (_ATTENTION, _attention),
    (_names("convolution convolution_overrideable"), _convolution),
    (_PER_CHANNEL, _per_channel),
    (_names("constant_pad_nd pad"), _pad),
)
