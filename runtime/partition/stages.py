"""What a plan costs, as stages of computing and collectives that depend on each other."""

from __future__ import annotations

from collections.abc import Iterator

from segmo.runtime.cost.model import CostModel
from segmo.runtime.partition.assignment import Assignment
from segmo.runtime.partition.exchange import Exports, parts_are_gathered
from segmo.runtime.partition.traffic import cache_bytes, feature_bytes, joined_bytes, scoring_bytes

Stage = tuple[str, int, str, float, list[str]]


def stages(plan: Assignment, exports: Exports) -> Iterator[Stage]:
    """Stages as (name, rank, label, seconds, names of the stages before); a collective has rank -1."""
    ranks, shape, work = range(plan.world), plan.shape, plan.workload
    costs = [CostModel(shape, device) for device in plan.devices]
    link = CostModel(shape, min(plan.devices, key=lambda device: device.link_bytes_per_s))

    for rank, cost in enumerate(costs):
        yield f"encode {rank}", rank, "encode", cost.vision_seconds(plan.encoded, work.tokens_per_frame), []
    yield "exchange features", -1, "features", _feature_seconds(plan, link), [f"encode {rank}" for rank in ranks]
    for rank, (cost, load) in enumerate(zip(costs, plan.loads, strict=True)):
        seconds = cost.dense_seconds(load.tokens) + cost.layer_overhead_seconds()
        yield f"dense {rank}", rank, "dense", seconds, ["exchange features"]
    dense = [f"dense {rank}" for rank in ranks]
    if shape.joined_bytes and plan.world > 1:
        yield "gather tokens", -1, "tokens", link.gather_seconds(joined_bytes(plan), plan.world), dense
        dense = ["gather tokens"]
    context = shape.segment_layers * _context_seconds(plan, exports, link)
    yield "gather context", -1, "context", context, dense
    for rank, (cost, load) in enumerate(zip(costs, plan.loads, strict=True)):
        query = cost.attention_seconds(load.query_pairs)
        yield f"query {rank}", rank, "query", query, dense if len(dense) == 1 else [f"dense {rank}"]
        own = cost.attention_seconds(load.own_pairs, load.own_rows, load.blocks)
        yield f"own {rank}", rank, "own", own, [f"query {rank}"]
        shared = cost.attention_seconds(load.shared_pairs, merged=load.merged_rows)
        yield f"shared {rank}", rank, "shared", shared, [f"own {rank}", "gather context"]
    partials = shape.segment_layers * _question_seconds(plan, link)
    yield "merge question", -1, "merge", partials, [f"query {rank}" for rank in ranks]
    cache = _gather_seconds(cache_bytes(plan), plan, link) if plan.cache == "gather" else 0.0
    yield "gather cache", -1, "cache", cache, [*(f"shared {rank}" for rank in ranks), "merge question"]


def _gather_seconds(bytes_per_rank: float, plan: Assignment, link: CostModel) -> float:
    return link.gather_seconds(bytes_per_rank, plan.world) if bytes_per_rank else 0.0


def _feature_seconds(plan: Assignment, link: CostModel) -> float:
    """Exchange of numbers that CAS needs of all frames, and then of features."""
    seconds = _gather_seconds(scoring_bytes(plan), plan, link)
    if plan.world > 1 and plan.workload.encoded:
        seconds += link.share_seconds(feature_bytes(plan), 1, plan.world)
    return seconds


def _context_seconds(plan: Assignment, exports: Exports, link: CostModel) -> float:
    """Exchange of keys and values in one layer."""
    size = plan.shape.kv_bytes
    if not exports.total:
        return 0.0
    if exports.by_broadcast:
        return link.share_seconds(exports.total * size, exports.sources, plan.world)
    return link.share_seconds(exports.busiest * size, 1, plan.world)


def _question_seconds(plan: Assignment, link: CostModel) -> float:
    """Exchange of the question's parts in one layer."""
    size = plan.workload.query * plan.shape.partial_bytes
    if plan.world == 1 or size == 0:
        return 0.0
    if parts_are_gathered(plan.world):
        return link.gather_seconds(size, plan.world)
    return link.reduce_seconds(size, plan.world)
