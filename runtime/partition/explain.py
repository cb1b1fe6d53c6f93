"""Why a plan is not perfectly balanced, in words."""

from __future__ import annotations

import numpy as np

from segmo.runtime.cost.model import CostModel
from segmo.runtime.partition.plan import Plan
from segmo.runtime.partition.traffic import joined_bytes
from segmo.runtime.partition.workload import divide


def explain(plan: Plan) -> list[str]:
    """Sentences on the imbalance and the waiting that are left, the largest first."""
    work, world = plan.workload, plan.world
    if world == 1:
        return ["One rank: there is nothing to balance and nothing to exchange."]
    busiest = max(range(world), key=plan.busy.__getitem__)
    idlest = min(range(world), key=plan.busy.__getitem__)
    gap = plan.busy[busiest] - plan.busy[idlest]
    reasons = [
        (
            f"Imbalance (largest over mean busy time) {plan.imbalance:.3f}: rank {busiest} computes "
            f"{1e3 * plan.busy[busiest]:.1f} ms, rank {idlest} {1e3 * plan.busy[idlest]:.1f} ms."
        )
    ]
    reasons += _about_segments(plan, busiest, gap)
    empty = [str(rank) for rank in range(world) if not plan.pieces[rank]]
    if empty:
        shown = ", ".join(empty[:8])
        reasons.append(f"Without segments: rank {shown}; {len(work.segments)} segments, {world} ranks.")
    replicated = work.sinks + work.query
    dense = CostModel(plan.shape, plan.devices[busiest]).dense_seconds(replicated)
    reasons.append(
        f"Sinks and question ({replicated} tokens) are computed on every rank: {1e3 * dense:.1f} ms each, "
        f"{100 * dense / plan.seconds:.1f}% of the prefill."
    )
    if plan.shape.joined_bytes:
        joined = (world - 1) * joined_bytes(plan)
        reasons.append(
            f"{plan.shape.whole_layers} layers without segments need the tokens of all ranks: each rank receives "
            f"{joined / 1e6:.2f} MB in them, and runs their recurrences whole."
        )
    waiting = plan.seconds - max(plan.busy)
    reasons.append(
        f"Communication that no computation hides: {1e3 * max(waiting, 0):.1f} ms "
        f"({100 * max(waiting, 0) / plan.seconds:.1f}%); each rank receives "
        f"{plan.bytes_received / 1e6:.2f} MB."
    )
    return reasons


def _about_segments(plan: Plan, busiest: int, gap: float) -> list[str]:
    """Names the segment at the border that would have to be cut to close the gap."""
    pieces = plan.pieces[busiest]
    if not pieces or gap <= 0:
        return []
    units = divide(plan.workload, plan.world, split=False)
    seconds = units.seconds(CostModel(plan.shape, plan.devices[busiest]), plan.workload)
    share = seconds.sum() / plan.world
    per_token = seconds / np.maximum(units.tokens, 1)
    largest = max(pieces, key=lambda piece: per_token[piece.segment] * piece.tokens)
    part = per_token[largest.segment] * largest.tokens
    if part > share:
        text = (
            f"Segment {largest.segment} alone is {part / share:.2f} shares, and cutting inside it would "
            "cost more in exchanged keys and values than it gains (or was not allowed)."
        )
        return [text]
    border = min((pieces[0], pieces[-1]), key=lambda piece: seconds[piece.segment])
    return [
        (
            f"The next smaller step is to move segment {border.segment} ({border.tokens} tokens, "
            f"{1e3 * seconds[border.segment]:.1f} ms), which would make a neighbour the slowest rank."
        )
    ]
