"""Your own pass: it runs in SegMo's pipeline, under SegMo's checks, and shows up in the report.

    python examples/custom_pass.py

A pass is a frozen dataclass with a name, a tier and ``run``. A pipeline finds it as ``module:Class``; a package that is
installed can register it under its name instead (entry point group ``segmo.passes``, see CONTRIBUTING.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

import segmo
from segmo.inspection.models import build, load_config, shrink
from segmo.inspection.prompts import synthetic_prompt
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.pipeline import DEFAULT
from segmo.passes.reasons import Miss
from segmo.report.report import Report


@dataclass(frozen=True)
class DropContiguous:
    """Takes out ``y.contiguous()`` where y is a reshape of what ``contiguous()`` gave. Exact: no number changes.

    Trap avoided: a reshape of a strided tensor can be strided itself, so only one of a contiguous tensor counts.
    """

    name: ClassVar[str] = "drop-contiguous"
    tier: ClassVar[Tier] = Tier.EXACT

    most: int = 1000  # a field is an option: "module:DropContiguous{most=2}"

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`. Works on a copy; the runner checks it, times it and puts it in place."""
        found = [node for node in rewrite.graph.nodes if _is(node, "contiguous") and _is_contiguous(node.args[0])]
        for node in found[: self.most]:
            node.replace_all_uses_with(node.args[0])
            rewrite.graph.erase_node(node)
        if not found:
            miss = Miss("nothing-to-drop", "no reshape is followed by contiguous()", "nothing to do")
            return Outcome(misses=(miss,))
        return Outcome(matches=len(found[: self.most]))


def _is(node: object, method: str) -> bool:
    return isinstance(node, Node) and node.op == "call_method" and node.target == method


def _is_contiguous(node: object) -> bool:
    return isinstance(node, Node) and _is(node, "reshape") and _is(node.args[0], "contiguous")


def main(layers: int = 2, most: int = 1000) -> Report:
    """The report of a prefill with the pass at the end of the default pipeline."""
    model = build(shrink(load_config("qwen2_vl", layers)))
    segmo.compile(model, keep=0.5, pipeline=f"{DEFAULT},{__name__}:DropContiguous{{most={most}}}")
    model.generate(**synthetic_prompt(model, frames=8), max_new_tokens=1, do_sample=False)
    report = segmo.last_report()
    print(report)
    return report


if __name__ == "__main__":
    main()
