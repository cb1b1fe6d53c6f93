"""``lower-kernels``: which implementation each inserted attention runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.graph import example
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS
from segmo.runtime.attention.choice import Shape, choose


@dataclass(frozen=True)
class LowerKernels:
    """Picks the generated Triton kernel on a GPU, flash attention with a logsumexp merge on the CPU, the
    dense-mask reference on request.

    Exact: all implementations equal the reference to rounding.

    Trap avoided: the choice, with the hash of a generated kernel's source, is an argument of the op, so no
    cache of compiled code can hold another one.
    """

    name: ClassVar[str] = "lower-kernels"
    tier: ClassVar[Tier] = Tier.EXACT

    lowering: str = "auto"

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        if rewrite.facts.miss:
            return Outcome(misses=(rewrite.facts.miss,))
        nodes = [n for n in rewrite.graph.nodes if n.target is OPS.segment_attention.default]
        if not nodes:
            return Outcome(misses=(Miss.of("no-segments"),))
        q, k = example(nodes[0].args[0]), example(nodes[0].args[1])
        shape = Shape(q.device, q.dtype, int(q.shape[3]), int(q.shape[1]), int(k.shape[1]))
        implementation, reason = choose(self.lowering, shape)
        for node in nodes:
            node.args = (*node.args[:5], implementation)
        rewrite.notes.append(f"lower-kernels: {implementation}, because {reason}")
        return Outcome(matches=len(nodes))
