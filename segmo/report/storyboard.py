"""Which frames of a video to show where there is no room for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Scene = Mapping[str, Any]  # an entry of segmo.last_report().to_dict()["scenes"]


def choose_frames(scenes: Sequence[Scene], count: int) -> list[int]:
    """``count`` frames (or all, if there are fewer) that stand for the scenes, ascending.

    Each scene shows its first frame, or every n-th scene does if there are more scenes than places. The other
    places go to scenes in proportion to length (D'Hondt's rule) and are spread evenly inside the scene.
    """
    length = [scene["end_frame"] - scene["start_frame"] for scene in scenes]
    shown = min(count, len(scenes))
    places = [0] * len(scenes)
    for number in range(shown):
        places[number * len(scenes) // shown] = 1
    for _ in range(count - shown):
        with_room = [scene for scene, frames in enumerate(length) if places[scene] < frames]
        if not with_room:
            break
        places[max(with_room, key=lambda scene: length[scene] / (places[scene] + 1))] += 1
    return [
        scene["start_frame"] + place * frames // taken
        for scene, frames, taken in zip(scenes, length, places, strict=True)
        for place in range(taken)
    ]
