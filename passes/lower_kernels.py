"""``lower-kernels``: which implementation each inserted attention runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from segmo.errors import CompileError
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.graph import example
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS


@dataclass(frozen=True)
class LowerKernels:
    """Picks flash attention per segment with a logsumexp merge on the CPU, the dense-mask reference on request.

    Exact: all implementations equal the reference to rounding.

    Trap avoided: the choice is an argument of the op, so no cache of compiled code can hold another one.
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
        value = example(nodes[0].args[0])
        implementation, reason = choose(self.lowering, value.device, value.dtype)
        for node in nodes:
            node.args = (*node.args[:5], implementation)
        rewrite.notes.append(f"lower-kernels: {implementation}, because {reason}")
        return Outcome(matches=len(nodes))


def choose(lowering: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Implementation of segment attention for a device and dtype, and why.

    Raises:
        CompileError: ``lowering="flash"`` was asked for where there is none.
    """
    if lowering == "reference":
        return "reference", "it was asked for"
    if device.type == "cpu":
        return "flash", f"the tensors are {str(dtype).removeprefix('torch.')} on the CPU"
    if lowering == "flash":
        raise CompileError(
            f"lowering='flash' is the CPU's flash attention; the model is on {device}. Use lowering='auto'"
        )
    return "reference", f"there is no kernel for {device.type} in this version"
