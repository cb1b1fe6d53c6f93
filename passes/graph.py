"""Reading and mending FX graphs as Dynamo hands them over."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_symbols

from segmo.compat.operators import FakeTensor


def example(node: Node) -> Any:
    """The value Dynamo traced for a node: a fake tensor, a number, or a tuple of them."""
    return node.meta.get("example_value")


def is_plain(value: object) -> bool:
    """Whether a traced value is a tensor that takes every call of PyTorch's, as no subclass has to."""
    return type(value) in (torch.Tensor, torch.nn.Parameter, FakeTensor)


def concrete(value: Any) -> Any:
    """A number as it was in the traced call; symbolic sizes become their hints, unbacked ones None."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.hint if value.node.has_hint() else None
    return value


def expression(value: Any) -> Any:
    """What a symbolic number stands for. To compare such numbers themselves would be to ask for a guard on them."""
    return value.node.expr if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else value


def sizes(node: Node) -> tuple[int | None, ...] | None:
    """Concrete shape of a node's tensor, None if it is not a tensor."""
    value = example(node)
    return tuple(concrete(size) for size in value.shape) if isinstance(value, torch.Tensor) else None


def depends_on_symbol_of(value: object, size: object) -> bool:
    """Whether a symbolic number is computed from the symbol of a symbolic size."""
    if not isinstance(value, torch.SymInt) or not isinstance(size, torch.SymInt):
        return False
    return bool(free_symbols(value) & free_symbols(size))


def downstream(roots: Iterable[Node]) -> set[Node]:
    """All nodes that use one of ``roots``, directly or through others, without the roots themselves."""
    seen: set[Node] = set()
    stack = [user for root in roots for user in root.users]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.users)
    return seen


def upstream(node: Node) -> Iterator[Node]:
    """All nodes that ``node`` is computed from, without itself; what was written into one of them by then too."""
    seen: set[Node] = {node}
    stack = list(node.all_input_nodes)
    while stack:
        source = stack.pop()
        if source not in seen:
            seen.add(source)
            stack.extend(source.all_input_nodes)
            stack.extend(writer for writer in writers_of(source) if writer < node)
            yield source


def writers_of(node: Node) -> Iterator[Node]:
    """The calls that change a node's tensor in place, directly or through a view of it."""
    for user in node.users:
        if changed_in_place(user) is node:
            yield user
        elif is_view(user) and user.args and user.args[0] is node:
            yield from writers_of(user)


def source_line(node: Node) -> str | None:
    """The line of the model's source that a node came from, as ``file:line: code``."""
    trace = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    places = [i for i, line in enumerate(trace) if line.startswith("File ")]
    if not places:
        return None
    where, code = trace[places[-1]], trace[places[-1] + 1 :][:1]
    _, path, rest = where.split('"', 2)
    number = rest.split("line ", 1)[-1].split(",", 1)[0]
    return f"{path}:{number}" + (f": {code[0]}" if code else "")


def op_name(node: Node) -> str:
    """Short stable name of what a node calls, for counting."""
    if node.op == "call_function":
        target: Any = node.target
        return str(target) if isinstance(target, torch._ops.OpOverload) else str(target.__name__)
    return f".{node.target}" if node.op == "call_method" else node.op


def library_of(node: Node) -> str:
    """Namespace of the operator that a node calls, such as ``"aten"``; empty where that is torch's own or a method."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        return str(target).partition(".")[0]
    if isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return str(getattr(target, "namespace", None) or "higher_order")
    return ""


def count_ops(graph: Graph) -> dict[str, int]:
    """How often each op is called, in graphs that are called too."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            counts[op_name(node)] += 1
            for body in filter(None, map(body_named, node.all_input_nodes)):
                counts.update(count_ops(body.graph))
    return dict(counts)


def body_named(node: Node) -> GraphModule | None:
    """The graph that a ``get_attr`` node names, for another node to call; None for any other node."""
    found = getattr(node.graph.owning_module, str(node.target), None) if node.op == "get_attr" else None
    return found if isinstance(found, GraphModule) else None


def graph_text(gm: GraphModule) -> str:
    """The graph as readable code."""
    text: str = gm.print_readable(print_output=False)
    return text


def changed_in_place(node: Node) -> Node | None:
    """The node whose tensor a call changes in place, if it does: ``x.add_(y)``, ``x[i] = y``, ``x += y``."""
    name = op_name(node)
    in_place = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    if node.op == "call_function":
        augmented = getattr(operator, name, None) is node.target and name in _AUGMENTED
        in_place = node.target is operator.setitem or augmented or (name.endswith("_") and name not in ("and_", "or_"))
    return node.args[0] if in_place and node.args and isinstance(node.args[0], Node) else None


_VIEWS = {
    "view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "flatten", "expand", "expand_as", "narrow",
    "view_as", "unflatten", "t", "chunk", "split", "unbind", operator.getitem, torch.reshape, torch.transpose,
    torch.permute, torch.unsqueeze, torch.squeeze, torch.flatten, torch.chunk, torch.split, torch.unbind,
}  # fmt: skip


def is_view(node: Node) -> bool:
    """Whether a call's result may share memory with its first argument."""
    return node.op in ("call_method", "call_function") and node.target in _VIEWS


_AUGMENTED = frozenset(name for name in dir(operator) if name[0] == "i" and hasattr(operator, f"__{name[1:]}__"))
_KEPT_CALLS = (operator.setitem, torch._check)


def _can_erase(node: Node) -> bool:
    """Whether an unused node has no effect. In-place methods end with ``_``; assertions have no users by nature."""
    if node.op == "call_method":
        return not str(node.target).endswith("_")
    if node.op != "call_function" or node.target in _KEPT_CALLS:
        return False
    name = op_name(node)
    if getattr(operator, name, None) is node.target:  # "and_" and "or_" end so because the words are taken
        return not name.startswith("i") or name in ("invert", "index", "is_", "is_not")
    return "assert" not in name and "rand" not in name and "dropout" not in name and not name.endswith("_")


def erase_unused(nodes: Iterable[Node]) -> None:
    """Erases those of ``nodes`` that are unused now, and what was only there for them.

    Not ``Graph.eliminate_dead_code``: at this level in-place calls such as ``x[mask] = y`` have no users but matter.
    """
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.users or node._erased or not _can_erase(node):
            continue
        inputs = list(node.all_input_nodes)
        node.graph.erase_node(node)
        stack.extend(inputs)


def replace_call(
    node: Node, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Node:
    """Puts another call in a node's place; what only the old one needed is erased. Its value is taken to be the same.

    Returns:
        The new node.
    """
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args, kwargs)
    new.meta = {key: value for key, value in node.meta.items() if key in ("example_value", "stack_trace")}
    node.replace_all_uses_with(new)
    inputs = list(node.all_input_nodes)
    node.graph.erase_node(node)
    erase_unused(inputs)
    return new
