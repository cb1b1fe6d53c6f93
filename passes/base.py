"""What a pass is: a frozen dataclass whose fields are its options, with a name, a tier and ``run``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn
from torch.fx import Graph, Node

from segmo.options import Options
from segmo.passes.analyse import Facts, Merge
from segmo.passes.attentions import Attention, Padding
from segmo.passes.reasons import Miss
from segmo.runtime.attention.choice import Choice


class Tier(Enum):
    """Whether a pass keeps the model's numbers."""

    EXACT = "exact"  # the same to rounding
    APPROXIMATE = "approximate"


@dataclass
class Rewrite:
    """The graph under rewriting, and what the passes before have put into it.

    Attributes:
        graph: the graph; if the pass does not apply, it is put back as it was.
        facts: what the analysis found in the graph as it was captured.
        options: the user's options.
        model: that the graph came from, for what the graph does not say; None where that is not known.
        nodes: nodes that later passes and the report need, by name ("scene", "index", ...).
        notes: what a pass has to say in the report, in order.
        choices: the implementation of attention that was chosen, for the report.
    """

    graph: Graph
    facts: Facts
    options: Options
    model: nn.Module | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def copy(self) -> Rewrite:
        """For one pass: the same graph, with notes and names of its own that are dropped if it does not apply."""
        return dataclasses.replace(self, nodes=dict(self.nodes), notes=list(self.notes), choices=list(self.choices))

    def moved(self, graph: Graph, mapped: Mapping[Node, Node]) -> Rewrite:
        """The same for another graph, with every node of facts and nodes mapped into that."""
        facts: Facts = _mapped(self.facts, mapped)
        nodes = {name: mapped[node] for name, node in self.nodes.items()}
        return dataclasses.replace(self, graph=graph, facts=facts, nodes=nodes)


def _mapped(value: Any, nodes: Mapping[Node, Node]) -> Any:
    """``value`` with each node in it replaced, inside tuples and dataclasses too."""
    if isinstance(value, Node):
        return nodes.get(value, value)  # a node that a pass has replaced is no longer in the graph
    if isinstance(value, tuple):
        return tuple(_mapped(item, nodes) for item in value)
    if isinstance(value, (Attention, Merge, Padding, Facts)):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _mapped(getattr(value, name), nodes) for name in names})
    return value


@dataclass(frozen=True)
class Outcome:
    """What a pass did: how many places it changed, and each place where it did not apply, with a reason."""

    matches: int = 0
    misses: tuple[Miss, ...] = ()


@runtime_checkable
class Pass(Protocol):
    """A rewrite. Implementations are frozen dataclasses; a field named as an option takes that option's value."""

    name: ClassVar[str]
    tier: ClassVar[Tier]

    def run(self, rewrite: Rewrite) -> Outcome:
        """Rewrites ``rewrite.graph`` in place.

        Raises:
            DoesNotApply: the graph is restored, and the miss is reported.
        """
        ...
