"""``outline-layers``: calls that stand in a graph again and again, as those of decoder layers, become one body."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_symbols, free_unbacked_symbols
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from segmo.compat.regions import INVOKE, takes_regions
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.effects import may_write
from segmo.passes.graph import example, expression, is_plain, library_of, op_name
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.stretches import ATTENTIONS, At, body_of, is_mode, replace_calls
from segmo.passes.values import Values

# Where an operand is 0 or 1 the other one is the result.
_ARITHMETIC = {"add", "sub", "mul", "div", "truediv", "pow", "true_divide", "subtract", "multiply", "divide"}
_WORTH = 8  # calls in a stretch: below that a call of a body costs inductor as much as they do


@dataclass(frozen=True)
class OutlineLayers:
    """Makes one body, called again and again, of stretches between attentions that are alike but for their operands.

    Inductor compiles a body once, so its time is that of one decoder layer, however many there are; what runs is the
    same. In compilers this is procedural abstraction (Fraser, Myers and Wendt, "Analyzing and compressing assembly
    code", 1984), or outlining.

    Exact. Only where inductor compiles the graph.

    Trap avoided: a body is compiled for operands of one kind, and sizes that Dynamo has traced are no longer true
    behind a cut. So values are traced anew, and stretches are alike only if their operands are: in dtype and device,
    sizes and strides. What lies in one memory stays so, and what does not stays apart: of what is read elsewhere, views
    and what may be its own operand stay outside, and a stretch ends before whatever may write.
    """

    name: ClassVar[str] = "outline-layers"
    tier: ClassVar[Tier] = Tier.EXACT

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        miss = _not_outlined(rewrite)
        if miss:
            return Outcome(misses=(miss,))
        values = Values(rewrite.graph)
        alike = [group for group in _groups(rewrite, values).values() if len(group) > 1]
        if not alike:
            return Outcome(misses=(Miss.of("no-repeats"),))
        for number, group in enumerate(alike):
            _outline(rewrite.graph, group, f"outlined_{number}", values)
        for node in rewrite.graph.nodes:  # torch keeps no graph on disk in which values of a pass's nodes are missing
            node.meta.setdefault("example_value", values.get(node))
        matches = sum(map(len, alike))
        bodies = f"{len(alike)} bodies" if len(alike) > 1 else "one body"
        rewrite.notes.append(f"outline-layers: {matches} stretches between attentions are calls of {bodies}")
        return Outcome(matches=matches)


def _not_outlined(rewrite: Rewrite) -> Miss | None:
    """Why a graph stays as it is, whatever is in it."""
    facts = rewrite.facts
    if facts.miss and facts.kind != "decode":  # a graph that runs as it was does so in everything
        return facts.miss
    if not facts.by_inductor:
        return Miss.of("as-it-is")
    if torch.is_grad_enabled():
        return Miss.of("gradients")
    if not takes_regions():
        return Miss.of("no-regions")
    mode = next(filter(is_mode, rewrite.graph.nodes), None)
    return None if mode is None else Miss.of("modes", op_name(mode), mode)


@dataclass(frozen=True)
class _Read:
    """Calls of a stretch that are read elsewhere, by place.

    Attributes:
        results: of a body, each with memory of its own.
        left: what stays outside, behind the body: views, and what inductor may find to be its operand.
    """

    results: tuple[int, ...]
    left: tuple[int, ...]


@dataclass(frozen=True)
class _Kind:
    """What is known of stretches that are alike.

    Attributes:
        values: of their calls.
        read: of what is read elsewhere; None if they cannot have a body.
        makes_sizes: the data say how long a result is.
    """

    values: list[Any]
    read: _Read | None
    makes_sizes: bool


@dataclass(frozen=True)
class _Stretch:
    """Calls, in order, that a body is made of."""

    calls: list[Node]
    read: _Read

    def results(self) -> list[Node]:
        return [self.calls[place] for place in self.read.results]

    def left(self) -> list[Node]:
        return [self.calls[place] for place in self.read.left]


def _groups(rewrite: Rewrite, values: Values) -> dict[Hashable, list[_Stretch]]:
    """The stretches that may have a body, those together that are alike; all values of the graph are computed.

    Inductor traces a graph again where it changes something behind a body, and cannot name a size in the data twice. So
    these are stretches behind the last one, as after the layers in which Qwen3-VL adds features to its video's tokens.
    """
    kinds = dict[Hashable, _Kind]()
    symbols = _symbols(rewrite.graph).keys()
    found: dict[Hashable, list[_Stretch]] = {}
    for calls in _parts(rewrite):
        key = _key(calls, values)
        if key not in kinds:
            computed = _computed(calls, values)
            kinds[key] = _Kind(computed, _read(calls, values, symbols), _makes_sizes(calls, values))
        kind = kinds[key]
        values.update(zip(calls, kind.values, strict=True))
        if kind.makes_sizes:
            found.clear()
        if kind.read and kind.read.results:
            found.setdefault(key, []).append(_Stretch(calls, kind.read))
    return found


def _parts(rewrite: Rewrite) -> Iterator[list[Node]]:
    """All nodes in order: stretches of calls that may have a body, and any other node by itself."""
    kept, calls = set(rewrite.nodes.values()), list[Node]()
    for node in rewrite.graph.nodes:
        if _is_movable(node) and node not in kept:
            calls.append(node)
            continue
        if calls and node.op not in ("placeholder", "get_attr"):
            yield calls
            calls = []
        yield [node]


def _is_movable(node: Node) -> bool:
    """Whether a call gives tensors, writes nothing, and is no operator of SegMo's: these stand between stretches.

    ``as_strided`` reads what its operand is a view of.
    """
    if node.op not in ("call_function", "call_method") or node.target in ATTENTIONS or may_write(node):
        return False
    if library_of(node) == "segmo" or "as_strided" in op_name(node):
        return False
    return isinstance(example(node), (Tensor, tuple))


def _computed(calls: list[Node], values: Values) -> list[Any]:
    return [_value(node, values) for node in calls]


def _value(node: Node, values: Values) -> Any:
    try:
        return values.compute(node)
    except Exception as error:  # of any operator: a user's own need not take fake tensors of another size
        raise DoesNotApply(Miss.of("no-values", f"{type(error).__name__}: {error}", node)) from error


def _sources(calls: list[Node]) -> list[Node]:
    """What calls read from elsewhere, in the order in which they do."""
    inside, sources = set(calls), dict[Node, None]()
    for node in calls:
        sources.update(dict.fromkeys(each for each in node.all_input_nodes if each not in inside))
    return list(sources)


def _read(calls: list[Node], values: Values, symbols: Any) -> _Read | None:
    """What is read elsewhere of calls; None where a body cannot give it.

    Inductor takes a body's results for tensors that begin where their memory does, and no two for the same; but behind
    that it finds that ``x * 1`` is ``x``.
    """
    if len(calls) < _WORTH or not _is_plain_and_sized(calls, values, symbols):
        return None
    inside, results, left, constants = set(calls), list[int](), list[int](), _constants(calls)
    for place in reversed(range(len(calls))):
        node = calls[place]
        if inside.issuperset(node.users):
            continue
        if _is_view(node, values) or _may_do_nothing(node, constants):
            left.append(place)
            inside.remove(node)  # so what it reads is read elsewhere
        elif isinstance(values[node], Tensor) and values[node].storage_offset() == 0:
            results.append(place)
        else:
            return None
    return _Read(tuple(reversed(results)), tuple(reversed(left)))


def _is_plain_and_sized(calls: list[Node], values: Values, symbols: Any) -> bool:
    """Whether operands and values are tensors of no subclass, or sizes, of sizes that come with the inputs."""
    operands = [values[node] for node in _sources(calls)]
    every = (*operands, *pytree.tree_leaves([values[node] for node in calls]))
    return all((is_plain(each) or isinstance(each, (int, torch.SymInt))) and _free(each) <= symbols for each in every)


def _makes_sizes(calls: list[Node], values: Values) -> bool:
    leaves = pytree.tree_leaves([values[node] for node in calls if library_of(node) != "segmo"])
    return any(free_unbacked_symbols(each) for each in leaves if isinstance(each, (Tensor, torch.SymInt)))


def _is_view(node: Node, values: Values) -> bool:
    """Whether a result lies in the memory of an operand."""
    if node.target is operator.getitem and isinstance(values[node.all_input_nodes[0]], tuple):
        return _is_view(node.all_input_nodes[0], values)
    operands = _memories([values[each] for each in node.all_input_nodes])
    return not operands.isdisjoint(_memories(values[node]))


def _memories(value: Any) -> set[int]:
    return {each.untyped_storage()._cdata for each in pytree.tree_leaves(value) if isinstance(each, Tensor)}


def _constants(calls: list[Node]) -> set[Node]:
    """Calls that read no operand's data."""
    found: set[Node] = set()
    for node in calls:
        made_up = any(part in op_name(node) for part in ("zeros", "ones", "full", "tensor"))
        if made_up or found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _may_do_nothing(node: Node, constants: set[Node]) -> bool:
    """Whether a call is arithmetic with a number, or with what was computed from numbers alone."""
    if op_name(node).lstrip(".") not in _ARITHMETIC:
        return False
    return any(not isinstance(each, Node) or each in constants for each in (*node.args, *node.kwargs.values()))


def _free(value: Any) -> set[Any]:
    return set(free_symbols(value)) if isinstance(value, (Tensor, torch.SymInt)) else set()


def _symbols(graph: Graph) -> dict[Any, Node]:
    """The graph's inputs that are sizes, by their symbols."""
    sizes = ((example(node), node) for node in graph.find_nodes(op="placeholder"))
    return {expression(size): node for size, node in sizes if isinstance(size, torch.SymInt)}


def _key(calls: list[Node], values: Values) -> Hashable:
    """The same for stretches of the same calls on operands of the same kinds."""
    sources = _sources(calls)
    places: dict[Node, Any] = {node: At(place) for place, node in enumerate((*sources, *calls))}
    places |= _numbers(sources, values)
    lines = []
    for node in calls:
        args, kwargs = map_arg((node.args, node.kwargs), places.__getitem__)
        lines.append(f"{node.op} {node.target!r} {args!r} {kwargs!r} {all(user in places for user in node.users)}")
    return tuple(_kind(values[node]) for node in sources), "\n".join(lines)


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        # Where a tensor begins matters to a GPU as far as 16 bytes go, which its kernels read at once.
        start = value.storage_offset() * value.element_size() % 16
        numbers = tuple(map(expression, (*value.shape, *value.stride(), start)))
        return type(value), value.dtype, value.device, numbers, value.is_conj(), value.is_neg()
    return type(value), expression(value) if isinstance(value, torch.SymInt) else repr(value)


def _outline(graph: Graph, group: list[_Stretch], name: str, values: Values) -> None:
    """Puts a call of one body in the place of each stretch.

    A body takes all sizes that are inputs of the graph: those of its operands are computed from them.

    Args:
        name: of the body.
        values: of the graph's nodes.
    """
    symbols = list(_symbols(graph).values())
    body = _body(group[0], [*symbols, *_operands(group[0], symbols, values)], values)
    setattr(graph.owning_module, name, body)
    for stretch in group:
        results, end = stretch.results(), stretch.calls[-1].next
        given = _operands(stretch, symbols, values)  # of which some were results of the stretch before
        with graph.inserting_before(end):
            call = graph.call_function(INVOKE, (graph.get_attr(name), name, *symbols, *given))
        made = replace_calls(stretch.calls, results, end, call, stretch.left())
        values.update((new, values[old]) for old, new in zip(results, made, strict=True))


def _operands(stretch: _Stretch, symbols: list[Node], values: Values) -> list[Node]:
    sources = _sources(stretch.calls)
    apart = {*symbols, *_numbers(sources, values)}
    return [node for node in sources if node not in apart]


def _numbers(sources: list[Node], values: Values) -> dict[Node, int]:
    """Sizes that are no symbols: they are part of a body."""
    return {node: values[node] for node in sources if isinstance(values[node], int)}


def _body(stretch: _Stretch, inputs: list[Node], values: Values) -> GraphModule:
    numbers = _numbers(_sources(stretch.calls), values)

    def arguments(graph: Graph, node: Node, made: dict[Node, Node]) -> Any:
        known: dict[Node, Any] = {**made, **numbers}
        return map_arg((node.args, node.kwargs), known.__getitem__)

    return body_of(inputs, stretch.calls, stretch.results(), arguments)
