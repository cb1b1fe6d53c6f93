"""How ranks exchange what they must: the rules that the plan counts with and the runtime follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Up to this many ranks the question's parts are gathered, which takes one exchange; with more they are
# reduced, which takes two and moves the same bytes however many ranks there are.
GATHERED_PARTS = 3


@dataclass(frozen=True)
class Exports:
    """Tokens whose keys and values each rank gives to all others in every layer.

    An all-gather moves the largest count from every rank; where few ranks have something to give, a broadcast
    from each of them moves less.
    """

    counts: tuple[int, ...]

    @classmethod
    def of(cls, counts: Sequence[int]) -> Exports:
        return cls(tuple(counts))

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def largest(self) -> int:
        return max(self.counts)

    @property
    def sources(self) -> int:
        return sum(count > 0 for count in self.counts)

    @property
    def by_broadcast(self) -> bool:
        """Whether broadcasts move at most half of what an all-gather would."""
        return 2 * self.total <= self.largest * len(self.counts)

    def received(self, rank: int) -> int:
        """Tokens that a rank receives, padding included."""
        if self.by_broadcast:
            return self.total - self.counts[rank]
        return self.largest * (len(self.counts) - 1)


def parts_are_gathered(world: int) -> bool:
    """Whether the question's parts are gathered rather than reduced."""
    return world <= GATHERED_PARTS
