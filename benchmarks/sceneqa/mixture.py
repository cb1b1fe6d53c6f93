"""What an update of the further training shows: which frames, how long a video, how much of it, and who asks when.

Everything is drawn from one generator, so an update shows the same whenever it is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from forward import USUAL, Grid

from segmo.sceneqa.task import DIFFICULTIES


def _grid(name: str) -> Grid:
    busy = DIFFICULTIES[name].busy
    return USUAL if busy is None else Grid(*busy)


@dataclass(frozen=True)
class Source:
    """One set's share of the updates, and the lengths of its videos: scenes, frames, and how likely they are."""

    name: str
    share: float
    lengths: tuple[tuple[int, int, float], ...]

    @property
    def grid(self) -> Grid:
        """Tokens of its frames."""
        return _grid(self.name)


LENGTHS = ((5, 10, 0.15), (8, 24, 0.2), (12, 56, 0.25), (16, 128, 0.4))
SOURCES = (
    Source("standard", 0.3, LENGTHS),
    Source("hard", 0.45, LENGTHS),
    Source("harder", 0.25, ((5, 10, 0.2), (8, 24, 0.3), (16, 64, 0.5))),
)
FIRST_SHARE = 0.4  # of the updates have the question in front of the video
WHOLE_SHARE = 0.3  # of the updates leave all tokens in, where there is room
LEAST_KEEP = 0.05
BLIND_SHARE = 0.5  # of the thinned videos with the question behind are thinned without any question
ROOM = 5000  # video tokens of an update, about; a video is never cut for it
MOST_VIDEOS, MOST_ASKED_FIRST = 6, 24
QUESTIONS = {"retrieve": 6, "moment": 5, "order": 6, "count": 6, "cross-scene": 7}  # of a video, questions behind it
IN_FRONT = {"retrieve": 2, "moment": 1, "order": 2, "count": 1, "cross-scene": 2}  # of a video, in front of it


@dataclass(frozen=True)
class Plan:
    """One update on videos.

    Attributes:
        source: where the frames are from.
        scenes, frames: of a video.
        videos: how many.
        kept: video tokens that are left of each.
        first: whether questions stand in front.
        rows: sequences where they do.
        blind: thinned without a question.
    """

    source: Source
    scenes: int
    frames: int
    videos: int
    kept: int
    first: bool
    rows: int
    blind: bool


def draw_plan(rng: np.random.Generator) -> Plan:
    """What the next update shows."""
    source = SOURCES[int(rng.choice(len(SOURCES), p=[source.share for source in SOURCES]))]
    odds = [chance for *_, chance in source.lengths]
    scenes, frames, _ = source.lengths[int(rng.choice(len(odds), p=odds))]
    tokens, first = frames * source.grid.cells, bool(rng.random() < FIRST_SHARE)
    keep = 1.0 if rng.random() < WHOLE_SHARE else float(np.exp(rng.uniform(np.log(LEAST_KEEP), 0)))
    kept = max(int(keep * tokens), scenes)
    if first:
        kept = min(kept, ROOM // 4)
    rows = min(MOST_ASKED_FIRST, ROOM // kept)
    # No more videos than their frames are worth: the tower reads all of them.
    videos = max(1, min(MOST_VIDEOS, ROOM // (tokens if not first else kept * 4), ROOM // kept))
    return Plan(source, scenes, frames, videos, kept, first, rows, bool(rng.random() < BLIND_SHARE))
