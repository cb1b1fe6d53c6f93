"""``shard-segments``: the segments of one prompt are spread over the ranks of a process group."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch.fx import Node

import segmo.runtime.distributed.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.errors import CacheError
from segmo.passes.attentions import is_local
from segmo.passes.base import Outcome, Pass, Rewrite, Tier
from segmo.passes.graph import concrete, erase_unused, example, replace_call, upstream
from segmo.passes.rank_cut import RankCut
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS, merge_of, scale_of
from segmo.runtime.cost.device import Device
from segmo.runtime.cost.shape import ModelShape, shape_of
from segmo.runtime.cost.store import planning_device
from segmo.runtime.distributed.preflight import exchange_facts, weights_fingerprint
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.session import Settings, session_of
from segmo.runtime.lowering import TORCH

_CHECKS = itertools.count()


@dataclass(frozen=True)
class ShardSegments:
    """Gives each rank whole segments (or, where one is too long, a part of it) by the cost model.

    Every rank keeps sinks and question; keys and values of context tokens are exchanged in each layer, and
    the question's attention is merged by logsumexp. Logits are those of the home rank on all ranks. Exact.

    Applies where the option ``ranks`` asks for a process group of more than one rank. After prefill
    ``cache="gather"`` leaves the whole cache on every rank, and plain ``generate`` goes on; ``cache="sharded"``
    leaves it where it is, and decode attends to it there.

    Trap avoided: ranks that differ (weights, options, versions, prompts) would compute nonsense or wait for
    ever; they are compared through the group's store before the first collective, and every prefill compares
    the prompts.
    """

    name: ClassVar[str] = "shard-segments"
    tier: ClassVar[Tier] = Tier.EXACT

    cache: str = "gather"
    device: str = "auto"
    method: str = "best"
    split: bool = True
    timeout: float = 120.0  # seconds in which every rank must have compiled its graph

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        ranks = Ranks.asked(rewrite.options.ranks)
        if ranks.world == 1:
            if rewrite.options.ranks is None and Ranks.of().world > 1:
                return Outcome(misses=(Miss.of("not-asked"),))
            return Outcome(misses=(Miss.of("no-group"),))
        if rewrite.facts.kind == "decode" and self.cache == "sharded":
            return self._decode(rewrite, ranks)
        if rewrite.facts.miss:
            return Outcome(misses=(rewrite.facts.miss,))
        if "schedule" not in rewrite.nodes:
            return Outcome(misses=(Miss.of("no-segments"),))
        if concrete(example(merge_of(rewrite).node).shape[0]) != 1:
            return Outcome(misses=(Miss.of("batch", node=merge_of(rewrite).node),))
        if self.cache == "sharded" and rewrite.options.scorer == "attention":
            return Outcome(misses=(Miss.of("late-selection", node=merge_of(rewrite).node),))
        left = next((a for a in rewrite.facts.attentions if a.miss and a.miss.code != "local-layer"), None)
        if self.cache == "sharded" and left is not None and left.miss is not None:
            return Outcome(misses=(Miss.of("whole-cache", left.miss.code, left.node),))
        settings = self._settings(rewrite, ranks)
        return self._prefill(rewrite, settings)

    # --- prefill

    def _prefill(self, rewrite: Rewrite, settings: Settings) -> Outcome:
        nodes, graph = rewrite.nodes, rewrite.graph
        attentions = [node for node in graph.nodes if _reads(node, nodes["schedule"])]
        after = max((nodes["schedule"], nodes["last"]), key=list(graph.nodes).index)
        with graph.inserting_after(after):
            arguments = (nodes["schedule"], nodes.get("index"), nodes["frame"], nodes["cell"], settings.to_json())
            packed = graph.call_function(OPS.plan_ranks.default, arguments)
        with graph.inserting_after(packed):
            index = graph.call_function(OPS.rank_positions.default, (packed, merge_of(rewrite).node))
            kept = graph.call_function(torch.ops.aten.sym_size.int, (nodes.get("index", nodes["frame"]), 1))
        for layer, node in enumerate(attentions):
            _replace(node, packed, settings.group, layer)
        gather = self.cache == "gather"
        merge, facts = merge_of(rewrite), rewrite.facts
        kept.meta["example_value"] = example(merge.node).shape[1]  # as long as the prompt, in the traced call
        self._spread_scoring(rewrite, settings.group)
        cut = RankCut(graph, index, packed, kept, settings.group, gather, merge, facts.caches)
        cut.run(self._roots(rewrite), index.next)
        shared = next((a for a in facts.replaceable if a.key in cut.wholes), None)
        if shared is not None and not gather:
            return Outcome(misses=(Miss.of("whole-cache", "its keys are another layer's too", shared.node),))
        whole = max(settings.shape.layers - len(attentions), 0)
        shape = replace(settings.shape, whole_layers=whole, joined_bytes=cut.joined_bytes)
        packed.args = (*packed.args[:-1], replace(settings, shape=shape).to_json())
        rewrite.notes.append(
            f"shard-segments: {len(settings.devices)} ranks ({settings.devices[0].name}), cache {self.cache}"
        )
        if cut.joined_bytes:
            rewrite.notes.append(
                "shard-segments: layers that need the tokens of all ranks gather "
                f"{cut.joined_bytes:,} bytes of each token in all"
            )
        return Outcome(matches=len(attentions))

    def _spread_scoring(self, rewrite: Rewrite, group: str) -> None:
        """CAS looks at each frame on the rank that encoded it; where frames may be missing, every rank looks at all."""
        if "encoded" in rewrite.nodes:
            return
        early, selects = rewrite.options.scorer != "attention", "index" in rewrite.nodes
        for node in rewrite.graph.nodes:
            if node.target is OPS.scan_video.default:
                node.target, node.args = OPS.rank_scan_video.default, (*node.args[:3], group, early, selects, TORCH)
            elif node.target is OPS.scene_novelty.default:
                node.target, node.args = OPS.rank_scene_novelty.default, (*node.args[:5], group, TORCH)
            elif node.target is OPS.embedding_relevance.default:
                *args, mean = node.args  # each rank has the sum of its own frames alone
                node.target, node.args = OPS.rank_relevance.default, (*args[:5], group, *args[5:])
                erase_unused([mean])

    def _roots(self, rewrite: Rewrite) -> dict[Node, int]:
        """What is dealt out to the ranks, along which dimension."""
        merge, index = merge_of(rewrite).node, rewrite.nodes.get("index")
        if index is None:
            return {merge: 1}
        if rewrite.options.scorer != "attention":
            return {n: 1 for n in merge.users if n.target is OPS.gather_tokens.default and n.args[1] is index}
        first = next(n for n in rewrite.graph.nodes if n.target is OPS.rank_attention.default)
        return {node: 2 for node in first.args[:3] if isinstance(node, Node)}

    # --- decode

    def _decode(self, rewrite: Rewrite, ranks: Ranks) -> Outcome:
        group, model = _name_of(ranks), rewrite.model
        # Layers with a window have the window's keys on every rank.
        spread = [a for a in rewrite.facts.attentions if not is_local(a.node, getattr(model, "config", None))]
        for attention in spread:
            if attention.mask is None or (session_of(group).decodes and _hides_nothing(attention.mask)):
                continue
            miss = Miss.of("masked-decode", node=attention.node)
            if session_of(group).decodes:  # as it is, each rank would take its own part for the whole
                raise CacheError(f"{miss.reason}: {miss.remedy}")
            return Outcome(misses=(miss,))
        for attention in spread:
            scale = scale_of(attention.query, attention.scale)
            args = (attention.query, attention.key, attention.value, scale, group, attention.layer, TORCH)
            replace_call(attention.node, OPS.rank_decode_attention.default, args)
        return Outcome(matches=len(spread))

    # --- what the ranks must agree on

    def _settings(self, rewrite: Rewrite, ranks: Ranks) -> Settings:
        """Compares this rank with the others and collects their devices."""
        embeds = example(merge_of(rewrite).node)
        model: Any = rewrite.model
        mine = planning_device(self.device, embeds.device, embeds.dtype)
        facts = {
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "segmo": version("segmo"),
            # Where a report is written is a rank's own affair.
            "options": str({**rewrite.options.as_dict(), "report": None}),
            "pass": str(self),
            "weights": weights_fingerprint(model),
        }
        name = f"shard-segments-{next(_CHECKS)}"
        shared = exchange_facts(facts, {"device": asdict(mine)}, ranks, name, timedelta(seconds=self.timeout))
        devices = tuple(Device(**one["device"]) for one in shared)
        shape: ModelShape = shape_of(model.config, embeds.dtype.itemsize)
        return Settings(_name_of(ranks), shape, devices, self.method, self.split, self.cache)


def _hides_nothing(mask: Node) -> bool:
    """Whether a mask is made from lengths alone, as transformers does before torch 2.14.

    A new token behind an unpadded prompt sees every key, and prompts with padding are not spread.
    """
    return not any(
        source.op == "placeholder" and "attention_mask" in str(source.target) for source in (mask, *upstream(mask))
    )


def spreads_cache(passes: Iterable[Pass]) -> bool:
    """Whether these passes leave the cache of a prefill on the ranks that made it, and decode there."""
    return any(isinstance(each, ShardSegments) and each.cache == "sharded" for each in passes)


def _name_of(ranks: Ranks) -> str:
    assert ranks.group is not None
    name: str = ranks.group.group_name
    return name


def _reads(node: Node, schedule: Node) -> bool:
    return node.target is OPS.segment_attention.default and node.args[3] is schedule


def _replace(node: Node, packed: Node, group: str, layer: int) -> None:
    """Puts attention over ranks in the place of segment attention."""
    node.target = OPS.rank_attention.default
    node.args = (*node.args[:3], packed, node.args[4], group, layer, TORCH)
