"""The partition is optimal: checked against all partitions of small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmo.errors import PlanError
from segmo.runtime.partition.cut import optimal_runs


def largest(ends, seconds_RU, fixed_R, entry_RU):
    starts = [0, *ends[:-1]]
    return max(
        fixed + row[start:end].sum() + (entry[start] if end > start else 0)
        for start, end, row, fixed, entry in zip(starts, ends, seconds_RU, fixed_R, entry_RU, strict=True)
    )


def fits(ends, bytes_RU, room_R):
    starts = [0, *ends[:-1]]
    return all(
        row[start:end].sum() <= room for start, end, row, room in zip(starts, ends, bytes_RU, room_R, strict=True)
    )


def all_partitions(ranks, units):
    for cuts in itertools.combinations_with_replacement(range(units + 1), ranks - 1):
        yield [*cuts, units]


@st.composite
def problems(draw):
    ranks, units = draw(st.integers(1, 4)), draw(st.integers(0, 7))
    number = st.integers(0, 20).map(float)

    def rows(count):
        return np.array(draw(st.lists(number, min_size=count, max_size=count)))

    seconds_RU = np.array([rows(units) for _ in range(ranks)]).reshape(ranks, units)
    bytes_RU = np.array([rows(units)] * ranks).reshape(ranks, units)
    room_R = rows(ranks) * draw(st.sampled_from([1.0, 3.0, 100.0]))
    return seconds_RU, rows(ranks), bytes_RU, room_R, rows(units)


@given(problems(), st.booleans())
def test_optimal_runs_equal_brute_force(problem, with_entry):
    seconds_RU, fixed_R, bytes_RU, room_R, entry_U = problem
    ranks, units = seconds_RU.shape
    entry_RU = np.tile(entry_U * with_entry, (ranks, 1))
    possible = [ends for ends in all_partitions(ranks, units) if fits(ends, bytes_RU, room_R)]
    if not possible:
        with pytest.raises(PlanError, match="GiB"):
            optimal_runs(seconds_RU, fixed_R, bytes_RU, room_R, entry_RU if with_entry else None)
        return
    ends = optimal_runs(seconds_RU, fixed_R, bytes_RU, room_R, entry_RU if with_entry else None)
    assert ends == sorted(ends)
    assert ends[-1] == units
    assert fits(ends, bytes_RU, room_R)
    best = min(largest(one, seconds_RU, fixed_R, entry_RU) for one in possible)
    assert largest(ends, seconds_RU, fixed_R, entry_RU) == pytest.approx(best)


def test_a_thousand_ranks_are_planned():
    rng = np.random.default_rng(0)
    seconds_RU = np.tile(rng.exponential(size=5000), (1024, 1))
    ends = optimal_runs(seconds_RU, np.zeros(1024), seconds_RU * 0, np.ones(1024))
    total = largest(ends, seconds_RU, np.zeros(1024), seconds_RU * 0)
    assert total < 3 * max(seconds_RU[0].sum() / 1024, seconds_RU[0].max())
