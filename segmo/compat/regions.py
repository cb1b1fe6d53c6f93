"""Nested compile regions of a graph: what Dynamo has read once, and wherever it stands again a call of that.

Where torch has no such regions (before 2.14), ``regions`` is None, and there are none to expand.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch._guards import InvokeSubgraphCache, TracingContext
from torch.fx import GraphModule, Node

regions: Any
try:
    from torch._dynamo.variables import invoke_subgraph as regions
except ImportError:
    regions = None

WHAT = "torch.ops.higher_order.invoke_subgraph in a graph"
VERSIONS = "torch 2.14; before it there are no regions"

INVOKE = torch.ops.higher_order.invoke_subgraph
_READ = "segmo_layers_read"
_SIZES = (int, torch.SymInt, torch.SymBool, torch.Size)


@dataclass(frozen=True)
class Layers:
    """The decoder layers of a graph that were regions.

    Attributes:
        count: how many.
        read: how many of them Dynamo has read.
        names: of each result of a region, by the name that Dynamo knows it by, the one that it has in the graph now.
    """

    count: int
    read: int
    names: dict[str, str]

    def notes(self) -> list[str]:
        """For the report."""
        if self.count == self.read:
            return []
        return [f"Dynamo read {self.read} of {self.count} decoder layers, and stamped out the others from what it read"]


def expand(gm: GraphModule) -> Layers:
    """Puts every region's nodes in its place, each with the path of the module that it belongs to.

    Args:
        gm: changed in place.
    """
    calls = gm.graph.find_nodes(op="call_function", target=INVOKE)
    first: dict[str, Any] = {}
    names: dict[str, str] = {}
    for call in calls:
        expand(getattr(gm, call.args[0].target))  # regions inside of regions
        path = call.meta.get("nn_module_stack", {})
        names.update(_expand(gm, call, first.setdefault(call.args[0].target, path), path))
    for name in first:
        delattr(gm, name)
    if calls:
        gm.recompile()
    read = getattr(TracingContext.try_get(), _READ, len(first))
    return Layers(len(calls), read, names)


def _expand(gm: GraphModule, call: Node, read: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Puts a region's nodes in the place of one call.

    Args:
        gm: changed in place.
        call: of a region.
        read, now: paths of the modules around the region where it was read, and where this call is.

    Returns:
        As in :class:`Layers`.
    """
    region: Any = call.args[0]
    body = getattr(gm, region.target)
    graph = body.graph
    made: dict[Node, Any] = dict(zip(graph.find_nodes(op="placeholder"), call.args[2:], strict=True))
    inside = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    with gm.graph.inserting_before(call):
        for node in inside:
            made[node] = gm.graph.node_copy(node, made.__getitem__)
            if node.op == "get_attr":
                made[node].target = f"{region.target}_{node.target}".replace(".", "_")
                setattr(gm, made[node].target, attrgetter(node.target)(body))
            made[node].meta["nn_module_stack"] = _path(node.meta.get("nn_module_stack", {}), read, now)
    (results,) = graph.output_node().args
    names = {}
    for user in list(call.users):
        names[user.name] = made[results[user.args[1]]].name
        user.replace_all_uses_with(made[results[user.args[1]]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)
    for node in reversed(inside):  # Dynamo takes sizes that nobody asks for out of a graph, but not out of a region
        if not made[node].users and isinstance(node.meta.get("example_value"), _SIZES):
            gm.graph.erase_node(made[node])
    if not region.users:
        gm.graph.erase_node(region)
    return names


def _path(inner: dict[str, Any], read: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    if read is now or not read:
        return inner
    (old, _), (new, _) = list(read.values())[-1], list(now.values())[-1]
    below = [(key, each) for key, each in inner.items() if key not in read]
    return {**now, **{key: (path.replace(old, new, 1), kind) for key, (path, kind) in below}}


def takes_regions() -> bool:
    """Whether inductor takes a graph with calls of regions, and :func:`expand` puts these back in their places."""
    return fits() is None and regions is not None


def count_read(tx: Any) -> None:
    """One more layer was read in the graph that is traced. Dynamo gives regions that came out alike one name."""
    context = tx.output.tracing_context
    setattr(context, _READ, getattr(context, _READ, 0) + 1)


def entries(tx: Any) -> list[tuple[Any, Any]]:
    """What Dynamo has read in the graph that it is tracing: under which conditions, and what."""
    cache = tx.output.tracing_context.hop_dispatch_set_cache.get_cache(INVOKE)
    return [entry for of_code in cache.subgraph_reuse_cache.values() for entry in of_code]


def fits() -> str | None:
    """A call must name its region and a number of it before the inputs, and Dynamo keep what it read for a function."""
    if regions is None:
        return None
    if list(inspect.signature(type(INVOKE).__call__).parameters)[1:3] != ["subgraph", "identifier"]:
        return "a call of a region takes other arguments"
    return None if hasattr(InvokeSubgraphCache(), "subgraph_reuse_cache") else "what was read is kept in another place"
