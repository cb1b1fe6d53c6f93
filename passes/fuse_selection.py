"""Selection and the gathers that follow it as one node, for a kernel that does both in one launch.

The gathers stand where their results are first used, SegMo's own nodes right behind the selection. The one
node stands in front of the first node of the model that uses any of it: what SegMo put before that place is
moved behind it, and gathers from behind it come forward.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from segmo.errors import KernelError
from segmo.passes.base import Rewrite
from segmo.passes.graph import changed_in_place, example, upstream
from segmo.passes.scene_nodes import OPS
from segmo.runtime.kernels.compact import payload_of
from segmo.runtime.kernels.specs import Payload


@dataclass(frozen=True)
class Selection:
    """A selection that can be fused.

    Attributes:
        select: the node that selects, for the host.
        index: the node that brings its result to the model's device.
        gathers: the gathers that can be part of it, in order.
        payloads: what each of them copies.
        before: the node in front of which all of it may stand.
        moved: nodes to move there too, in order.
    """

    select: Node
    index: Node
    gathers: tuple[Node, ...]
    payloads: tuple[Payload, ...]
    before: Node
    moved: tuple[Node, ...]


def find_selection(rewrite: Rewrite) -> Selection | None:
    """The graph's selection with its gathers; None if there is none, or if it must stay where it is because a
    tensor that it reads changes in place before its result is used.
    """
    nodes = list(rewrite.graph.nodes)
    select = next((node for node in nodes if node.target is OPS.select_tokens.default), None)
    if select is None:
        return None
    index = next(user for user in select.users if user.target is OPS.to_device.default)
    place = {node: at for at, node in enumerate(nodes)}
    own = _own_nodes(select)
    before = min((user for node in own for user in node.users if user not in own), key=place.__getitem__)
    changes = [(place[node], root) for node in nodes if (root := changed_in_place(node)) is not None]

    def may_move(node: Node) -> bool:
        low, high = sorted((place[node], place[before]))
        between = [root for at, root in changes if low < at < high]
        return not any(_may_share(root, source) for root in between for source in node.all_input_nodes)

    gathers: list[Node] = []
    payloads: list[Payload] = []
    for gather in sorted(index.users, key=place.__getitem__):
        if gather.target is not OPS.gather_tokens.default or gather.args[1] is not index:
            continue
        source = gather.args[0]
        payload = _payload(gather, f"x{len(gathers)}")
        if payload and isinstance(source, Node) and place[source] < place[before] and may_move(gather):
            gathers.append(gather)
            payloads.append(payload)
    moved = [node for node in nodes if node in own - {select, index, *gathers} and place[node] < place[before]]
    if not all(may_move(node) for node in (select, index, *moved)):
        return None
    return Selection(select, index, tuple(gathers), tuple(payloads), before, tuple(moved))


def _own_nodes(select: Node) -> set[Node]:
    """The selection and what SegMo's own nodes make of it, none of which has an effect beside its result."""
    own, stack = {select}, [select]
    while stack:
        for user in stack.pop().users:
            if user not in own and _is_own(user):
                own.add(user)
                stack.append(user)
    return own


def _is_own(node: Node) -> bool:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace == "segmo" or target is torch.ops.aten.sym_size.int
    source = node.args[0] if target is operator.getitem else None
    return isinstance(source, Node) and getattr(source.target, "namespace", None) == "segmo"


def _may_share(root: Node, source: Node) -> bool:
    """Whether a change of ``root`` could be one of ``source``: one is made from the other, perhaps as a view."""
    return root is source or source in set(upstream(root)) or root in set(upstream(source))


def _payload(gather: Node, name: str) -> Payload | None:
    """What a gather copies for each kept token; None where the kernel cannot."""
    source, _, dim = gather.args
    value = example(source)  # type: ignore[arg-type]  # what is gathered is a node
    if not isinstance(value, Tensor) or not isinstance(dim, int):
        return None
    outer, width = _product(value.shape[1:dim]), _product(value.shape[dim + 1 :])
    if outer is None or width is None:
        return None
    try:
        return payload_of(name, value.dtype, outer, width)
    except KernelError:
        return None


def _product(sizes: Iterable[Any]) -> int | None:
    """None where a size is symbolic: the kernel is made for fixed ones."""
    total = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        total *= size
    return total


def fuse(rewrite: Rewrite, found: Selection, implementation: str) -> int:
    """Puts one node in the place of the selection and its gathers; the number of nodes that it replaces."""
    graph, old = rewrite.graph, (found.select, found.index, *found.gathers)
    with graph.inserting_before(found.before):
        call: Callable[..., Node] = graph.call_function
        sources = [gather.args[0] for gather in found.gathers]
        dims = [gather.args[2] for gather in found.gathers]
        args = (*found.select.args, found.index.args[1], sources, dims, implementation)
        fused = call(OPS.select_and_gather.default, args)
        results = [call(operator.getitem, (fused, at)) for at in range(len(old))]
    for node in found.moved:
        found.before.prepend(node)
    for node, result in zip(old, results, strict=True):
        result.meta.update(node.meta)
        node.replace_all_uses_with(result, propagate_meta=False)
    for node in reversed(old):
        graph.erase_node(node)
    new = dict(zip(old, results, strict=True))
    for name, node in rewrite.nodes.items():
        rewrite.nodes[name] = new.get(node, node)
    return len(old)
