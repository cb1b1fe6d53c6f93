"""Stretches of a graph: calls, one after another, that are put into a graph of their own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

import segmo.runtime.distributed.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.passes.attentions import SDPA
from segmo.passes.effects import may_write
from segmo.passes.graph import example
from segmo.passes.row_axes import is_fresh
from segmo.passes.scene_nodes import OPS

# Calls that stand between stretches.
ATTENTIONS = (SDPA, OPS.segment_attention.default, OPS.rank_attention.default)

# (the graph that is being made, a call, what stands for each node that the call may read) -> arguments of the new call
Arguments = Callable[[Graph, Node, dict[Node, Node]], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class At:
    """A node by its place, in what two stretches are compared by."""

    place: int


def is_mode(node: Node) -> bool:
    """Whether a call says what torch computes with from there on, as autocast does."""
    return str(getattr(node.target, "__name__", "")).startswith(("_enter_", "_exit_", "_set_"))


def is_written(node: Node, calls: Container[Node]) -> bool:
    """Whether the result of one of ``calls`` may be changed by others, directly or through a view of it."""
    views = [node]
    for view in views:
        for user in view.users:
            if user in calls or user in views:
                continue
            if may_write(user):
                return True
            if not is_fresh(user):
                views.append(user)
    return False


def body_of(
    inputs: Iterable[Node], calls: Iterable[Node], results: Sequence[Node], arguments: Arguments
) -> GraphModule:
    """Calls as a graph of their own, which takes ``inputs`` and returns a tuple of ``results``."""
    graph = Graph()
    made: dict[Node, Node] = {}
    for node in inputs:
        made[node] = graph.placeholder(node.name)
        made[node].meta["example_value"] = example(node)
    for node in calls:
        args, kwargs = arguments(graph, node, made)
        made[node] = graph.create_node(node.op, node.target, args, kwargs, node.name)
        made[node].meta = {key: node.meta[key] for key in ("example_value", "stack_trace") if key in node.meta}
    graph.output(tuple(made[node] for node in results))
    return GraphModule(torch.nn.Module(), graph)


def replace_calls(
    calls: Collection[Node], results: Sequence[Node], before: Node, call: Node, left: Sequence[Node] = ()
) -> list[Node]:
    """Puts one call, whose results are a tuple, in the place of others.

    Args:
        calls: in order. Those that nobody reads any more are erased.
        results: which of them the call gives.
        before: node that stands behind all of this.
        call: gives the results.
        left: which of ``calls`` stay, behind the call, and read its results.

    Returns:
        What stands for each result.
    """
    with call.graph.inserting_before(before):
        made = [call.graph.call_function(operator.getitem, (call, place)) for place in range(len(results))]
    call.meta["example_value"] = tuple(map(example, results))
    for node in reversed(left):
        made[-1].append(node)
    inside = set(calls).difference(left)
    for old, new in zip(results, made, strict=True):
        new.meta = old.meta
        old.replace_all_uses_with(new, lambda user: user not in inside)
    for node in reversed(list(calls)):
        if not node.users:
            call.graph.erase_node(node)
    return made
