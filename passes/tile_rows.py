"""``tile-rows``: what stands between two attentions runs on some hundred rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from segmo.errors import PipelineError
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.effects import may_write, not_as_it_is
from segmo.passes.graph import example, expression
from segmo.passes.reasons import Miss
from segmo.passes.row_axes import Axis, Followed, follow
from segmo.passes.scene_nodes import OPS, merge_of
from segmo.passes.stretches import ATTENTIONS, At, body_of, is_mode, is_written, replace_calls
from segmo.runtime.row_tiles import in_row_tiles, tile_rows

_LINEAR = torch.nn.functional.linear
_WORTH = 2  # linear layers in a stretch: one alone reads and writes no more than its operand and result


@dataclass(frozen=True)
class TileRows:
    """Runs each stretch of the graph that computes every row from itself alone on some hundred rows after another.

    Norms, linear layers, activations and rotations between two attentions each write a tensor of the prompt's length
    and read it back. In tiles of rows these stay in the processor's caches, take no fresh memory, and cost little more
    than their matrix products. Stretches of the same calls share one body, as decoder layers do.

    Exact to rounding. On the CPU, where the graph is run as it is: inductor fuses such calls itself.

    Trap avoided: a call may look at other rows (a norm over them, a shift, a count), or change memory that is read
    elsewhere. So only calls with a rule in :mod:`segmo.passes.row_axes` belong to a stretch, and it ends before any
    call that may write (:mod:`segmo.passes.effects`).
    """

    name: ClassVar[str] = "tile-rows"
    tier: ClassVar[Tier] = Tier.EXACT

    rows: int = 0  # of a tile; 0 for as many as the machine likes

    def __post_init__(self) -> None:
        if type(self.rows) is not int or self.rows < 0:
            raise PipelineError(f"pass {self.name!r}: rows is {self.rows!r}; it must be a whole number from 0 on")

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        miss = not_as_it_is(rewrite.facts)
        if miss:
            return Outcome(misses=(miss,))
        bodies = _Bodies(rewrite.graph, self.rows)
        matches = sum(1 for _ in _put(rewrite, bodies))
        if not matches:
            return Outcome(misses=(Miss.of("no-stretch"),))
        rows = self.rows or tile_rows()
        rewrite.notes.append(f"tile-rows: {matches} stretches between attentions, in tiles of {rows:,} rows")
        return Outcome(matches=matches)


@dataclass
class _Stretch:
    """Calls, in order, that compute each row from itself alone.

    Attributes:
        calls: what was found of each.
        inputs: what they read from elsewhere, and where its rows are.
        rows: their number as it was traced.
    """

    calls: dict[Node, Followed] = field(default_factory=dict)
    inputs: dict[Node, Axis | None] = field(default_factory=dict)  # no tuples; see takes()
    rows: Any = None

    def results(self) -> list[Node]:
        """Calls whose results are read elsewhere. Views of what came from elsewhere stay where they are."""
        read = (node for node in self.calls if any(user not in self.calls for user in node.users))
        return [node for node in read if self._memory(node) in self.calls]

    def is_worth_it(self) -> bool:
        """Whether tiles gain anything, all results are tensors, and nobody sees that each has memory of its own."""
        linears, results = sum(node.target is _LINEAR for node in self.calls), self.results()
        if linears < _WORTH or not results or not all(isinstance(self.calls[each].axis, int) for each in results):
            return False
        shared = Counter(map(self._memory, results))
        return not any(shared[self._memory(each)] > 1 and is_written(each, self.calls) for each in results)

    def _memory(self, node: Node) -> Node:
        """The call, or what came from elsewhere, in whose memory a result may lie."""
        while node in self.calls and self.calls[node].view:
            node = node.all_input_nodes[0]
        return node

    def takes(self, node: Node, found: Followed, known: Mapping[Node, Axis]) -> bool:
        """Whether a call has as many rows as those that are here, and reads what comes from elsewhere as they do."""
        new = self._read(node, found, known)
        alike = all(self.inputs.get(each, axis) == axis and not isinstance(axis, tuple) for each, axis in new.items())
        return alike and self.rows in (None, _rows(node, found.axis))

    def add(self, node: Node, found: Followed, known: Mapping[Node, Axis]) -> None:
        """Adds a call behind those that are here."""
        self.rows = _rows(node, found.axis)
        self.inputs |= self._read(node, found, known)
        self.calls[node] = found

    def _read(self, node: Node, found: Followed, known: Mapping[Node, Axis]) -> dict[Node, Axis | None]:
        """What a call reads from elsewhere, the number of rows left out, and where its rows are."""
        read: dict[Node, Axis | None] = {}
        map_arg(
            (_resized(node, found, 0), node.kwargs),
            lambda each: read.setdefault(each, found.aligned.get(each, known.get(each))),
        )
        return {each: axis for each, axis in read.items() if each not in self.calls}


def _resized(node: Node, found: Followed, size: Any) -> tuple[Any, ...]:
    """A call's arguments with another number of rows."""
    if not found.sizes:
        return node.args
    source, *given = node.args
    listed = len(given) == 1 and isinstance(given[0], (tuple, list))
    sizes: list[Any] = list(given[0]) if listed else given  # type: ignore[arg-type]
    for place in found.sizes:
        sizes[place] = size
    return (source, sizes) if listed else (source, *sizes)


def _put(rewrite: Rewrite, bodies: _Bodies) -> Iterator[_Stretch]:
    """Puts each stretch that is worth it into tiles, in order."""
    known: dict[Node, Axis] = {}
    recorded = set(rewrite.nodes.values())
    stretch = _Stretch()
    for node in list(rewrite.graph.nodes):
        out = node in recorded or _is_result(node)
        found = None if out else follow(node, known)
        if found is not None and not stretch.takes(node, found, known):
            found = None
        if found is None and _ends(node, stretch):
            if stretch.is_worth_it():
                known.update(bodies.put(stretch, node))
                yield stretch
            stretch = _Stretch()
        if found is not None:
            stretch.add(node, found, known)
            known[node] = found.axis
        elif (axis := _row_axis(node, merge_of(rewrite).node)) is not None:
            known[node] = axis


def _ends(node: Node, stretch: _Stretch) -> bool:
    """Whether a stretch has to be computed before a node: it is read there, or what it reads may change there."""
    read = any(each in stretch.calls for each in node.all_input_nodes)
    return node.op == "output" or is_mode(node) or read or may_write(node)


def _row_axis(node: Node, merge: Node) -> int | None:
    """Where the rows of a tensor are of which that is known without its operands."""
    value = example(node)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if node is merge or (node.target in ATTENTIONS and not _is_trimmed(node)):
        return -2
    if node.target is OPS.gather_tokens.default:
        dim: Any = node.args[2]
        return int(dim) % value.dim() - value.dim()
    return None


def _is_trimmed(attention: Node) -> bool:
    """Whether ``trim-last-layer`` left it one row of queries, which it picked by a call that nobody has traced."""
    query: Any = attention.args[0] if attention.args else attention.kwargs["query"]
    return example(query) is None


def _rows(node: Node, axis: Axis) -> Any:
    """The number of rows as it was traced."""
    value = example(node)
    return expression(value[0].shape[axis[0]] if isinstance(axis, tuple) else value.shape[axis])


def _is_result(node: Node) -> bool:
    """Whether a linear layer's result leaves the graph, as logits do: they would be copied once more."""
    return node.target is _LINEAR and all(user.op == "output" for user in node.users)


class _Bodies:
    """What stretches compute, as graphs of their own, one for all that make the same calls.

    Args:
        graph: rewritten in place.
        rows: of a tile.
    """

    def __init__(self, graph: Graph, rows: int) -> None:
        self.graph, self.rows = graph, rows
        self.bodies: dict[str, str] = {}

    def put(self, stretch: _Stretch, end: Node) -> dict[Node, Axis]:
        """Puts one call in the place of a stretch's, before ``end``; its results, and where their rows are."""
        inputs, results = list(stretch.inputs), stretch.results()
        axes = tuple(stretch.inputs.values()), tuple(stretch.calls[node].axis for node in results)
        with self.graph.inserting_before(end):
            call = self.graph.call_function(in_row_tiles, (self._body(stretch, results), *axes, self.rows, *inputs))
        made = replace_calls(stretch.calls, results, end, call)
        return dict(zip(made, axes[1], strict=True))

    def _body(self, stretch: _Stretch, results: Sequence[Node]) -> Node:
        key = _key(stretch, results)
        if key not in self.bodies:
            self.bodies[key] = f"row_tiles_{len(self.bodies)}"
            setattr(self.graph.owning_module, self.bodies[key], _body(stretch, results))
        return self.graph.get_attr(self.bodies[key])


def _key(stretch: _Stretch, results: Sequence[Node]) -> str:
    """The same for stretches of the same calls on tensors of the same kinds."""
    place: dict[Node, Any] = {node: At(number) for number, node in enumerate([*stretch.inputs, *stretch.calls])}
    lines = [f"{axis} {_kind(node)}" for node, axis in stretch.inputs.items()]
    for node, found in stretch.calls.items():
        args, kwargs = map_arg((_resized(node, found, -2), node.kwargs), place.__getitem__)
        lines.append(f"{node.op} {node.target!r} {args!r} {kwargs!r} {found.axis} {_kind(node)}")
    return "\n".join((*lines, repr([place[node] for node in results])))


def _kind(node: Node) -> str:
    value = example(node)
    if not isinstance(value, Tensor):
        return str(type(value))
    return f"{type(value)} {value.dtype} {list(map(str, value.shape))} {value.device}"


def _body(stretch: _Stretch, results: Sequence[Node]) -> GraphModule:
    """A stretch as a graph of its own."""

    def arguments(graph: Graph, node: Node, made: dict[Node, Node]) -> Any:
        found = stretch.calls[node]
        size = _rows_of_operand(graph, stretch, node, made) if found.sizes else None
        return map_arg((_resized(node, found, size), node.kwargs), lambda each: made.get(each, each))

    return body_of(stretch.inputs, stretch.calls, results, arguments)


def _rows_of_operand(graph: Graph, stretch: _Stretch, node: Node, made: Mapping[Node, Node]) -> Node:
    """The number of rows that a call's operand has in a tile."""
    source: Any = node.args[0]
    axis = stretch.calls[source].axis if source in stretch.calls else stretch.inputs[source]
    return graph.call_method("size", (made[source], axis))
