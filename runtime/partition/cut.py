"""Contiguous runs of units per rank, optimal by dynamic programming.

Legend: R ranks, U units.

The problem is the linear partition problem with a cost per rank: give rank 0 the first units, rank 1 the
next, and so on (some may get none), so that the largest finishing time is as small as it can be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segmo.errors import MemoryPlanError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _prefix(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _step_monotone(best: Floats, seconds: Floats, fixed: float, first: Ints) -> tuple[Floats, Ints]:
    """One rank more, when a longer run never costs less: the best start is where the two curves cross, O(U
    log U).

    ``best[i]`` grows with i and the run's time shrinks with it, so only the crossing and the start before it
    matter.
    """
    ends = np.arange(len(best))
    crossing = np.searchsorted(best + seconds, fixed + seconds, side="left")
    later = np.minimum(np.maximum(crossing, first), ends)
    earlier = np.minimum(np.maximum(crossing - 1, first), ends)

    def value(start: Ints) -> Floats:
        return np.asarray(np.maximum(best[start], fixed + seconds - seconds[start]))

    value_later, value_earlier = value(later), value(earlier)
    take_later = value_later < value_earlier
    return np.where(take_later, value_later, value_earlier), np.where(take_later, later, earlier)


def _step_general(best: Floats, seconds: Floats, fixed: float, first: Ints, entry: Floats) -> tuple[Floats, Ints]:
    """One rank more, with a cost of entering at a unit, O(U^2)."""
    ends = np.arange(len(best))
    run = fixed + seconds[None, :] - seconds[:, None] + np.append(entry, 0.0)[:, None]
    run[ends, ends] = fixed  # an empty run enters nothing
    value = np.maximum(best[:, None], run)
    value[(ends[:, None] > ends[None, :]) | (ends[:, None] < first[None, :])] = np.inf
    start = np.argmin(value, axis=0)
    return value[start, ends], start


def optimal_runs(
    seconds_RU: Floats, fixed_R: Floats, bytes_RU: Floats, room_R: Floats, entry_RU: Floats | None = None
) -> list[int]:
    """Ends of the runs, (R,) ascending with the last one U, that minimise ``max_r(fixed_r + entry + sum of
    seconds)``.

    Args:
        seconds_RU: seconds of each unit on each rank.
        fixed_R: seconds that a rank spends whatever it gets.
        bytes_RU, room_R: memory that each unit takes on each rank, and what the rank has for units.
        entry_RU: extra seconds of a run that begins at each unit; None for none.

    Raises:
        MemoryPlanError: no assignment fits into memory.
    """
    ranks, units = seconds_RU.shape
    best = np.full(units + 1, np.inf)
    best[0] = 0.0
    choices = []
    for rank in range(ranks):
        seconds, used = _prefix(seconds_RU[rank]), _prefix(bytes_RU[rank])
        room = room_R[rank] * (1 + 1e-12)
        first = np.searchsorted(used, used - room, side="left")
        if entry_RU is None:
            best, start = _step_monotone(best, seconds, float(fixed_R[rank]), first)
        else:
            best, start = _step_general(best, seconds, float(fixed_R[rank]), first, entry_RU[rank])
        choices.append(start)
    if not np.isfinite(best[units]):
        raise MemoryPlanError(
            f"no partition fits: the segments need {bytes_RU.max(axis=0).sum() / 2**30:.2f} GiB, and {ranks} "
            f"ranks have {room_R.sum() / 2**30:.2f} GiB left for them ({_list_gib(room_R)}); use more ranks, "
            'keep fewer tokens, allow split segments, or leave the cache where it is (cache="sharded")'
        )
    ends = [units]
    for start in reversed(choices[1:]):
        ends.append(int(start[ends[-1]]))
    return ends[::-1]


def _list_gib(room_R: Floats) -> str:
    shown = ", ".join(f"rank {rank}: {room / 2**30:.2f}" for rank, room in enumerate(room_R[:8]))
    return shown + (", ..." if len(room_R) > 8 else "")
