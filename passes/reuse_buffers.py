"""``reuse-buffers``: elementwise results take the memory of an operand that nobody reads again."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, Node

from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.graph import example
from segmo.passes.reasons import Miss

_IN_PLACE = {operator.mul: operator.imul, operator.add: operator.iadd}
_ACTIVATIONS = {torch.nn.functional.silu}
# Ops whose result is memory of its own, and whose backward pass nobody will ask for.
_FRESH = {torch.nn.functional.linear, operator.imul, operator.iadd, operator.mul, operator.add, *_ACTIVATIONS}


@dataclass(frozen=True)
class ReuseBuffers:
    """Turns ``a * b``, ``a + b`` and ``silu(a)`` into their in-place forms where ``a`` is used there and nowhere else.

    Eager PyTorch takes new memory for each result; on a CPU the page faults of that cost several times the arithmetic.
    Exact. Only where the graph is run as it is: inductor plans its buffers itself.

    Trap avoided: a view of the operand would see the change, so only results of ops that always give new memory are
    overwritten, and never where gradients are recorded.
    """

    name: ClassVar[str] = "reuse-buffers"
    tier: ClassVar[Tier] = Tier.EXACT

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        facts = rewrite.facts
        if facts.miss:
            return Outcome(misses=(facts.miss,))
        if torch.is_grad_enabled():
            return Outcome(misses=(Miss.of("gradients"),))
        embeds = example(facts.merge.node) if facts.merge else None
        if facts.by_inductor or embeds is None or embeds.device.type != "cpu":
            return Outcome(misses=(Miss.of("own-buffers"),))
        return Outcome(matches=sum(_reuse(rewrite.graph, node) for node in list(rewrite.graph.nodes)))


def _reuse(graph: Graph, node: Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target in _ACTIVATIONS and _is_free(node.args[0], node):
        node.kwargs = {**node.kwargs, "inplace": True}
        return True
    if node.target not in _IN_PLACE or len(node.args) != 2:
        return False
    free = [place for place in (0, 1) if _is_free(node.args[place], node)]
    if not free:
        return False
    operand, other = node.args[free[0]], node.args[1 - free[0]]
    node.target, node.args = _IN_PLACE[node.target], (operand, other)
    return True


def _is_free(operand: Any, node: Node) -> bool:
    """Whether ``operand`` is memory of its own, of the result's size and dtype, that is read by ``node`` alone."""
    if not isinstance(operand, Node) or operand.target not in _FRESH or len(operand.users) != 1:
        return False
    if sum(arg is operand for arg in node.args) != 1:
        return False
    old, new = example(operand), example(node)
    return isinstance(old, torch.Tensor) and old.dtype == new.dtype and _same_size(old, new)


def _same_size(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dim() == b.dim() and all(x is y or str(x) == str(y) for x, y in zip(a.shape, b.shape, strict=True))
