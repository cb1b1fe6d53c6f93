"""``inject-context`` (GCI): a few context tokens that every later token may see, whatever its segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS, relevance_of_scenes


@dataclass(frozen=True)
class InjectContext:
    """Makes the head frames of the ``context`` most relevant scenes, and the last ``tails`` frames of each segment,
    visible to all later tokens.

    Exact towards full attention where every token is context; otherwise it brings segment attention closer to it.

    Trap avoided: with ``scorer="attention"`` relevance is known from layer ``layer`` on, so the layers before it have
    no context. Where select-tokens did not run, that scorer has not either, and the embedding scorer takes its place.
    """

    name: ClassVar[str] = "inject-context"
    tier: ClassVar[Tier] = Tier.APPROXIMATE

    context: int = 2
    tails: int = 2

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        facts, nodes = rewrite.facts, rewrite.nodes
        if facts.miss:
            return Outcome(misses=(facts.miss,))
        if "schedule" not in nodes:  # segment-attention says why
            return Outcome(misses=(Miss.of("no-segments"),))
        if self.context == 0 and self.tails == 0:
            return Outcome(misses=(Miss.of("no-context"),))
        schedule = nodes["schedule"]
        prefix = "kept_" if "index" in nodes else ""
        segment, _, valid = schedule.args
        relevance = relevance_of_scenes(rewrite, schedule) if self.context else None
        with rewrite.graph.inserting_before(schedule):
            args = (nodes[f"{prefix}frame"], nodes[f"{prefix}scene"], segment, relevance, self.context, self.tails)
            context = rewrite.graph.call_function(OPS.context_tokens.default, args)
        schedule.args = (segment, context, valid)
        nodes["context"] = context
        return Outcome(matches=1)
