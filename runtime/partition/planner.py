"""From a workload and devices to a plan: the best one, or balanced, by equal token counts, or in a zigzag."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from segmo.checked import hint
from segmo.errors import PlanError
from segmo.runtime.cost.device import Device
from segmo.runtime.cost.memory import Memory, check_memory, rank_memory
from segmo.runtime.cost.model import CostModel
from segmo.runtime.cost.shape import ModelShape
from segmo.runtime.partition.assignment import HOME_BLOCKS, Piece
from segmo.runtime.partition.cut import Floats, optimal_runs
from segmo.runtime.partition.plan import CACHES, Plan
from segmo.runtime.partition.workload import Units, Workload, divide

METHODS = ("best", "balanced", "equal", "zigzag")

# A zigzag or a cut inside a segment must gain this share of the time over whole segments in a row: each moves more
# bytes, or lets a rank's context come from more ranks, and a prediction is no better than that.
MARGIN = 0.01

# With more ranks than this only whole segments in a row are planned: others would take seconds to find.
COMPARED_RANKS = 64

# With more ranks than this the home rank is chosen after the partition, not with it.
MANY_RANKS = 8


def check_names(method: str, cache: str) -> None:
    """Whether there are such a method and such a cache.

    Raises:
        PlanError: there is none of that name.
    """
    for value, known, what in ((method, METHODS, "method"), (cache, CACHES, "cache")):
        if value not in known:
            raise PlanError(f"unknown {what} {value!r}{hint(value, known)} Known: {', '.join(known)}")


def make_plan(
    workload: Workload,
    shape: ModelShape,
    devices: Sequence[Device],
    method: str = "best",
    split: bool = True,
    cache: str = "gather",
) -> Plan:
    """The plan for a prefill.

    Args:
        devices: one per rank, in rank order.
        method: ``"balanced"``: contiguous runs with the smallest largest time by the cost model. ``"equal"``:
            contiguous runs with the smallest largest number of tokens. ``"zigzag"``: twice as many balanced
            runs as ranks, rank r computing the r-th from the front and the r-th from the back (Spava).
            ``"best"``: balanced or zigzag, whichever is predicted to take less time.
        split: allow a segment above its share to be cut inside, where the plan gains by it.
        cache: where the cache is after prefill, ``"gather"`` or ``"sharded"``.

    Raises:
        PlanError: an unknown method or cache, no ranks, or not enough memory.
    """
    check_names(method, cache)
    if not devices:
        raise PlanError("a plan needs at least one rank")
    several = 1 < len(devices) <= COMPARED_RANKS
    methods = ("balanced", "zigzag") if method == "best" and several else ("balanced" if method == "best" else method,)
    ways = [(each, inside) for inside in ((False, True) if split and several else (False,)) for each in methods]
    plans, failure = [], None
    for each, inside in ways:
        try:
            plans.append(_with_best_home(workload, shape, tuple(devices), each, inside, cache))
        except PlanError as error:
            failure = error
    if not plans:
        assert failure is not None
        raise failure
    chosen = plans[0]
    for plan in plans[1:]:
        if plan.seconds < (1 - MARGIN) * chosen.seconds:
            chosen = plan
    return chosen


def _with_best_home(
    workload: Workload, shape: ModelShape, devices: tuple[Device, ...], method: str, split: bool, cache: str
) -> Plan:
    """Tries every rank as home; with many, only the one that is least loaded when the home costs nothing."""
    world = len(devices)
    homes: Sequence[int | None] = range(world) if world <= MANY_RANKS else [None]
    plans = [_partition(workload, shape, devices, method, split, cache, home) for home in homes]
    plan = min(plans, key=lambda plan: (max(plan.busy), plan.seconds))
    check_memory(list(plan.memory), list(devices))
    return plan


def _partition(
    workload: Workload,
    shape: ModelShape,
    devices: tuple[Device, ...],
    method: str,
    split: bool,
    cache: str,
    home: int | None,
) -> Plan:
    world = len(devices)
    turns = list(range(world))
    if method == "zigzag":
        turns += turns[::-1]
    units = divide(workload, len(turns), split)
    costs = [CostModel(shape, devices[rank]) for rank in turns]
    entry_RU = None
    if method == "equal":
        seconds_RU = np.tile(units.tokens.astype(np.float64), (len(turns), 1))
        fixed_R = np.zeros(len(turns))
    else:
        seconds_RU = np.stack([units.seconds(cost, workload) for cost in costs])
        fixed_R = np.asarray([_fixed_seconds(cost, workload) for cost in costs])
        if home is not None:
            fixed_R[home] += _home_seconds(costs[home], workload)
        if units.offset.any():  # a run may begin inside a segment
            entry_RU = np.stack([units.entry_seconds(cost, world) for cost in costs])
    bytes_RU = np.stack([units.bytes(cost, cache == "sharded") for cost in costs])
    room_R = _room(workload, costs, cache, len(turns) // world)
    ends = optimal_runs(seconds_RU, fixed_R, bytes_RU, room_R, entry_RU)

    runs: list[list[Piece]] = [[] for _ in range(world)]
    for rank, start, end in zip(turns, [0, *ends[:-1]], ends, strict=True):
        runs[rank] += _pieces(units, start, end)
    pieces = tuple(_joined(run) for run in runs)
    plan = Plan(workload, shape, devices, pieces, home or 0, cache, method)
    if home is None:
        least = min(range(world), key=lambda rank: (plan.busy[rank], rank))
        plan = dataclasses.replace(plan, home=least)
    return plan


def _fixed_seconds(cost: CostModel, work: Workload) -> float:
    """What a rank spends on sinks and question, and on calls, whatever segments it gets."""
    replicated = cost.dense_seconds(work.sinks + work.query) + cost.layer_overhead_seconds()
    sinks = cost.attention_seconds(work.sinks * (work.sinks + 1) / 2, work.sinks, work.sinks > 0)
    return replicated + sinks


def _home_seconds(cost: CostModel, work: Workload) -> float:
    """What the home rank spends on the question's attention to the sinks and to itself."""
    pairs = work.query * work.sinks + work.query * (work.query + 1) / 2
    return cost.attention_seconds(pairs, 0, HOME_BLOCKS)


def replicated_memory(work: Workload, shape: ModelShape, cache: str) -> Memory:
    """What a rank holds whatever segments it gets; more ranks do not make it less."""
    replicated = work.sinks + work.query
    cached = work.tokens if cache == "gather" else replicated
    return rank_memory(shape, replicated, cached, sum(work.context), work.encoded)


def _room(work: Workload, costs: list[CostModel], cache: str, turns: int) -> Floats:
    """Bytes left for segments on each rank, divided over its turns.

    Raises:
        MemoryPlanError: a rank has no room even for what every rank holds.
    """
    fixed = [replicated_memory(work, cost.shape, cache) for cost in costs]
    check_memory(fixed, [cost.device for cost in costs])
    room = [cost.device.memory_bytes - need.total for cost, need in zip(costs, fixed, strict=True)]
    return np.asarray(room, dtype=np.float64) / turns


def _pieces(units: Units, start: int, end: int) -> list[Piece]:
    return [
        Piece(int(units.segment[u]), int(units.offset[u]), int(units.offset[u] + units.tokens[u]))
        for u in range(start, end)
        if units.tokens[u]
    ]


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Pieces of the same segment that touch become one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.segment == piece.segment and last.end == piece.start:
            joined[-1] = Piece(piece.segment, last.start, piece.end)
        else:
            joined.append(piece)
    return tuple(joined)
