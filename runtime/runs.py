"""Runs of neighbours among places."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Start and end of each run of neighbours among ascending places."""
    starts = [at for at, place in enumerate(places) if at == 0 or places[at - 1] != place - 1]
    return [(places[a], places[b - 1] + 1) for a, b in pairwise([*starts, len(places)])]
