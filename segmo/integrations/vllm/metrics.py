"""What the selection did, in vLLM's own metrics (``/metrics``) and log."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from segmo.integrations.vllm.select import Selection


@lru_cache(maxsize=1)
def _counters() -> tuple[Any, Any, Any]:
    from prometheus_client import Counter

    return (
        Counter("segmo:videos", "Videos that were cut"),
        Counter("segmo:video_tokens", "Video tokens before the selection"),
        Counter("segmo:kept_video_tokens", "Video tokens that the selection kept"),
    )


def count(video: int, kept: int) -> None:
    """Counts a video of so many tokens, of which so many are kept; one that vLLM's caches hold is not counted again."""
    videos, before, after = _counters()
    videos.inc()
    before.inc(video)
    after.inc(kept)


def log(selection: Selection, video: int, kept: int, encoded: bool) -> None:
    """One line for a selection."""
    from vllm.logger import init_logger

    logger: Any = init_logger("vllm.segmo")
    source = "encoded" if encoded else "encoded before"
    if not selection.scenes:
        logger.error("SegMo: the features of a video hold NaN or infinity; kept %d of %d tokens evenly", kept, video)
        return
    logger.info(
        "SegMo: kept %d of %d video tokens (%d scenes) in %.1f ms, %s",
        *(kept, video, selection.scenes, 1000 * selection.seconds, source),
    )
