"""``push-selection``: frames that are dropped behind the vision encoder are dropped in front of it instead."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, Node

from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS

INPUTS = ("pixels", "beside", "pixel_rows", "few_beside", "token_rows", "total")


def vision_graph(outputs: int) -> Graph:
    """Encode every frame, take the tokens of the chosen ones, and put them in their places among zeros.

    The encoder is one node: a graph of its inside is unrolled frame by frame, and so would not serve another video.

    Inputs: the ``pixels`` of all frames and what goes to the encoder ``beside`` them; the rows of the chosen frames in
    the pixels and in the features (``pixel_rows``, ``token_rows``), what goes beside these alone (``few_beside``), and
    the number of rows of all features (``total``).

    Args:
        outputs: arrays of features that the encoder gives (Qwen3-VL's deepstack levels are further ones).
    """
    graph = Graph()
    named = {name: graph.placeholder(name) for name in INPUTS}
    features = graph.call_module("encoder", (named["pixels"], named["beside"]))
    placed = []
    for place in range(outputs):
        item = graph.call_function(operator.getitem, (features, place))
        taken = graph.call_function(OPS.take_rows.default, (item, named["token_rows"]))
        placed.append(graph.call_function(OPS.place_rows.default, (taken, named["token_rows"], named["total"])))
    graph.output(tuple(placed))
    return graph


@dataclass(frozen=True)
class PushSelection:
    """Moves the choice of frames above the vision encoder, so that a dropped frame is never encoded.

    Exact to rounding: it applies only where the encoder's features of a frame have been shown to depend on that
    frame's pixels alone and not on its place (``facts.miss`` says why not otherwise), so that encoding and taking
    rows can change places.

    Trap avoided: "one attention segment per frame" is read from what the encoder does, not from what it is called.
    """

    name: ClassVar[str] = "push-selection"
    tier: ClassVar[Tier] = Tier.EXACT

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        if rewrite.facts.miss:
            return Outcome(misses=(rewrite.facts.miss,))
        graph = rewrite.graph
        named = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
        encoder = next((node for node in graph.nodes if node.op == "call_module"), None)
        if encoder is None:
            return Outcome(misses=(Miss.of("no-pixels"),))
        with graph.inserting_before(encoder):
            few = graph.call_function(OPS.take_rows.default, (named["pixels"], named["pixel_rows"]))
        encoder.args = (few, named["few_beside"])
        below = [node for node in graph.nodes if node.target is OPS.take_rows.default and node is not few]
        for taken in below:
            source = taken.args[0]
            assert isinstance(source, Node)
            taken.replace_all_uses_with(source)
            graph.erase_node(taken)
        return Outcome(matches=len(below))
