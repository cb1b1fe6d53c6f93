"""How ranks exchange what they must: the rules that the plan counts with and the runtime follows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

# Up to this many ranks the question's parts are gathered, which takes one exchange; with more they are
# reduced, which takes two and moves the same bytes however many ranks there are.
GATHERED_PARTS = 3


@dataclass(frozen=True)
class Exports:
    """Tokens whose keys and values travel between ranks in every layer; all fields are (W,).

    A row sees nothing behind it, so tokens are needed by ranks with a later piece only, and travel straight to these.
    Where one rank has something for many, broadcasts to all ranks are lighter.

    Attributes:
        counts: tokens that each rank gives to at least one other.
        sent: the same, counted once for each rank that needs them.
        needed: other ranks' tokens that each rank needs.
    """

    counts: tuple[int, ...]
    sent: tuple[int, ...]
    needed: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def sources(self) -> int:
        return sum(count > 0 for count in self.counts)

    @functools.cached_property
    def busiest(self) -> int:
        """Tokens that leave or reach the busiest rank, whichever are more, if they travel straight."""
        return max(*self.sent, *self.needed)

    @functools.cached_property
    def by_broadcast(self) -> bool:
        """Whether broadcasts move at most half of what the busiest rank would."""
        return 2 * self.total <= self.busiest

    def received(self, rank: int) -> int:
        """Tokens that a rank receives."""
        return self.total - self.counts[rank] if self.by_broadcast else self.needed[rank]


def parts_are_gathered(world: int) -> bool:
    """Whether the question's parts are gathered rather than reduced."""
    return world <= GATHERED_PARTS
