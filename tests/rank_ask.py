"""A video file on the way to its features over ranks; functions here run in a crew's processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segmo.ask.cache import TensorCache
from segmo.ask.checkpoint import load
from segmo.ask.context import Context, Request
from segmo.ask.settings import Settings
from segmo.ask.whole_video import WholeVideo
from segmo.report.timeline import Timeline
from segmo.runtime.distributed.ranks import Ranks


def features(
    rank: int, world: int, model: Path, videos: list[Path], cache: Path | None = None
) -> list[tuple[Any, int, bool]]:
    """Features of each file, how many frames this rank encoded for them, and whether they came from its own cache."""
    loaded, encoded = load(model), [0]
    tower = loaded.model.base_model.get_video_features

    def counting(**inputs: Any) -> Any:
        grid = inputs.get("video_grid_thw")
        encoded[0] += int(inputs["pixel_values_videos"].shape[1] if grid is None else grid[:, 0].sum())
        return tower(**inputs)

    loaded.model.base_model.get_video_features = counting
    store = None if cache is None else TensorCache(cache / str(rank), 1 << 30)
    ranks = Ranks.of() if world > 1 else Ranks(None)
    way = WholeVideo(Context(loaded, Settings(fps=4.0), store, Timeline(), lambda stage, done, total: None, ranks))
    results = []
    for video in videos:
        request = Request(video, "What happens?")
        encoded[0] = 0
        found, cached = way.features(request, way.prepare(request))
        results.append((found, encoded[0], bool(cached)))
    return results
