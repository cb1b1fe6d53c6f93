"""Predicted against measured time of plans, and how far the chosen one is from the best."""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from dataclasses import asdict
from typing import Any

import numpy as np
from rank_clock import clocked_in_turn
from rank_model import DTYPES, SHAPE, Decoder, make_prompt, select
from rank_ways import run_plan
from rich.console import Console

from segmo.runtime.cost.device import Device
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.partition.assignment import Piece
from segmo.runtime.partition.plan import Plan
from segmo.runtime.partition.planner import make_plan
from segmo.runtime.partition.workload import Workload


def random_plan(row_segments: list[int], plan: Plan, rng: np.random.Generator) -> Plan:
    """The same workload with its segments cut into runs at random places."""
    cuts = sorted(rng.integers(0, len(row_segments) + 1, plan.world - 1).tolist())
    edges = [0, *cuts, len(row_segments)]
    pieces = tuple(
        tuple(Piece(s, 0, row_segments[s]) for s in range(start, end)) for start, end in itertools.pairwise(edges)
    )
    return Plan(plan.workload, plan.shape, plan.devices, pieces, plan.home, plan.cache, "random")


def predict(args: argparse.Namespace, ranks: Ranks, decoder: Decoder, device: Device) -> list[dict[str, Any]]:
    """Predicted against measured time for the chosen plan and for others, on several videos.

    Plans of one video are measured in turn, round after round.
    Measured twice: as wall time, and as processor time of the busiest rank, which other work on the machine does not
    stretch. What is compared with the latter is the plan's largest busy time.
    """
    rng = np.random.default_rng(1)
    rows = []
    for number in range(args.plans):
        tokens = int(rng.integers(2, max(3, args.tokens // 1024 + 1))) * 1024
        prompt = make_prompt(tokens, int(rng.integers(5, 13)), DTYPES[args.dtype], seed=number)
        index, row = select(prompt, 1.0, "scene", (args.context, args.tails), ranks)
        load, devices = Workload.of_schedule(row), [device] * ranks.world
        chosen = make_plan(load, SHAPE, devices, cache="sharded")
        plans = {
            "chosen": chosen,
            "equal": make_plan(load, SHAPE, devices, "equal", cache="sharded"),
            "zigzag": make_plan(load, SHAPE, devices, "zigzag", cache="sharded"),
            "whole scenes in a row": make_plan(load, SHAPE, devices, "balanced", split=False, cache="sharded"),
            "random": random_plan(list(load.segments), chosen, rng),
        }
        # Plans that hand out the same pieces are one: measured twice, they would differ by noise.
        distinct = {(plan.pieces, plan.home): plan for plan in plans.values()}
        ways = [functools.partial(run_plan, decoder, prompt, ranks, plan, index, row) for plan in distinct.values()]
        clocks = dict(zip(distinct, clocked_in_turn(ways, args.runs), strict=True))
        for name, plan in plans.items():
            clock = clocks[plan.pieces, plan.home]
            rows.append(
                {
                    "video": number,
                    "tokens": tokens,
                    "plan": name,
                    "pieces": [[asdict(piece) for piece in run] for run in plan.pieces],
                    "wall": clock.wall,
                    "predicted wall": plan.seconds,
                    "busy": max(clock.cpu),
                    "predicted busy": max(plan.busy),
                }
            )
            if ranks.rank == 0:
                shown = {key: value for key, value in rows[-1].items() if key != "pieces"}
                Console(stderr=True).print(shown, highlight=False)
    return rows


def show_plans(rows: list[dict[str, Any]]) -> list[str]:
    """How far predictions are off, and how far the chosen plan is from the best measured one."""
    lines = []
    for kind in ("wall", "busy"):
        errors = [100 * abs(one[f"predicted {kind}"] / one[kind] - 1) for one in rows]
        lines.append(
            f"{kind} time of {len(rows)} plans: median error {statistics.median(errors):.1f}%, "
            f"largest {max(errors):.1f}%"
        )
        misses = [_miss(rows, video, kind) for video in sorted({one["video"] for one in rows})]
        worst, where = max(misses)
        median = statistics.median(miss for miss, _ in misses)
        over = f"{kind} time of the chosen plan over the best of five"
        lines.append(f"{over}: median {median:.1f}%, largest {worst:.1f}% ({where})")
    return lines


def _miss(rows: list[dict[str, Any]], video: int, kind: str) -> tuple[float, str]:
    """By how many percent a video's chosen plan takes longer than the best one, and which that is."""
    plans = {one["plan"]: one for one in rows if one["video"] == video}
    chosen, best = plans["chosen"], min(plans.values(), key=lambda one: one[kind])
    miss = 100 * (chosen[kind] / best[kind] - 1)
    predicted = 100 * (chosen[f"predicted {kind}"] / best[f"predicted {kind}"] - 1)
    return miss, f"video {video}, {chosen['tokens']} tokens: {best['plan']} is best; predicted {predicted:+.1f}%"
