"""How prefills over ranks are timed: all ranks together, several ways in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from rank_ways import Outcome


def exchange(value: float) -> list[float]:
    """One number from every rank."""
    values = [torch.zeros(1, dtype=torch.double) for _ in range(dist.get_world_size())]
    dist.all_gather(values, torch.tensor([value], dtype=torch.double))
    return [float(one) for one in values]


@dataclass(frozen=True)
class Clocked:
    """Best wall time of the slowest rank, and processor times of the run in which the busiest rank had least."""

    wall: float
    cpu: tuple[float, ...]
    outcome: Outcome


def clocked(run: Callable[[], Outcome], runs: int) -> Clocked:
    """Times a prefill that all ranks take part in."""
    return clocked_in_turn([run], runs)[0]


def clocked_in_turn(ways: Sequence[Callable[[], Outcome]], runs: int) -> list[Clocked]:
    """Times several prefills in turn, so that what else the machine does meets all of them alike.

    Each round begins with another one, because the first finds the caches as the last has left them.
    """
    walls: list[list[float]] = [[] for _ in ways]
    cpus: list[list[tuple[float, ...]]] = [[] for _ in ways]
    outcomes: dict[int, Outcome] = {}
    for number in range(runs):
        for at in range(len(ways)):
            way = (at + number) % len(ways)
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            outcomes[way] = ways[way]()
            taken, busy = time.perf_counter() - wall, time.process_time() - cpu
            walls[way].append(max(exchange(taken)))
            cpus[way].append(tuple(exchange(busy)))
    return [Clocked(min(walls[way]), min(cpus[way], key=max), outcomes[way]) for way in range(len(ways))]
