"""What the selection did, in vLLM's own metrics (``/metrics``) and log.

Requests are counted where they are processed, which is the process that answers ``/metrics``. Selections run in another
one, vLLM's worker: what is measured there comes to ``/metrics`` where Prometheus' client works over several processes
(``PROMETHEUS_MULTIPROC_DIR``, which ``segmo serve`` sets), and else stays in the log.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from segmo.integrations.vllm.select import Selection

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@lru_cache(maxsize=1)
def _counters() -> tuple[Any, Any, Any]:
    from prometheus_client import Counter

    return (
        Counter("segmo:videos", "Videos that were cut"),
        Counter("segmo:video_tokens", "Video tokens before the selection"),
        Counter("segmo:kept_video_tokens", "Video tokens that the selection kept"),
    )


@lru_cache(maxsize=1)
def _selections() -> tuple[Any, Any]:
    from prometheus_client import Counter, Histogram

    return (
        Counter("segmo:scenes", "Scenes of the videos of which tokens were selected"),
        Histogram("segmo:selection_seconds", "Time of a selection", buckets=SECONDS),
    )


def count(video: int, kept: int) -> None:
    """Counts a video of so many tokens, of which so many are kept; one that vLLM's caches hold is not counted again."""
    videos, before, after = _counters()
    videos.inc()
    before.inc(video)
    after.inc(kept)


def log(selection: Selection, video: int, kept: int, encoded: bool) -> None:
    """One line for a selection, and its metrics; of a tensor-parallel group, the first rank speaks for all."""
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.logger import init_logger

    if get_tensor_model_parallel_rank() != 0:
        return
    logger: Any = init_logger("vllm.segmo")
    source = "encoded" if encoded else "encoded before"
    if not selection.scenes:
        logger.error("SegMo: the features of a video hold NaN or infinity; kept %d of %d tokens evenly", kept, video)
        return
    scenes, seconds = _selections()
    scenes.inc(selection.scenes)
    seconds.observe(selection.seconds)
    logger.info(
        "SegMo: kept %d of %d video tokens (%d scenes) in %.1f ms, %s",
        *(kept, video, selection.scenes, 1000 * selection.seconds, source),
    )
