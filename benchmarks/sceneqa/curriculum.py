"""From short videos to long ones: what each level shows and when the next one starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """Videos of one level; the next one starts at ``enough`` accuracy of *retrieve*, or after ``most`` updates."""

    scenes: int
    frames: int
    videos: int
    questions: dict[str, int]
    most: int
    enough: float


FEW = {"retrieve": 4, "moment": 2, "order": 4, "count": 3, "cross-scene": 4}
SOME = {"retrieve": 5, "moment": 4, "order": 6, "count": 5, "cross-scene": 6}
MANY = {"retrieve": 6, "moment": 5, "order": 6, "count": 6, "cross-scene": 7}
LEVELS = (
    Level(5, 10, 9, FEW, 500, 0.75),
    Level(8, 24, 6, SOME, 400, 0.80),
    Level(12, 56, 4, MANY, 400, 0.84),
    Level(16, 128, 3, MANY, 10**9, 2.0),
)
REVIEW = 0.5  # of the batches are from an earlier level
# In most batches frames, and in half of those tokens too, are left out at random: videos of many rates.
DROPOUT, LEAST_FRAMES, LEAST_TOKENS = 0.6, 0.1, 0.3
# Weight of a kind's questions: finding a scene by its name is what most else builds on.
KIND_WEIGHT = {"retrieve": 1.5, "moment": 1.0, "order": 1.0, "count": 1.0, "cross-scene": 1.5}
