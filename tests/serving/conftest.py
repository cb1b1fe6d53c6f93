"""These tests need vLLM, which has an environment of its own: ``make test-vllm``. Elsewhere they are skipped."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

HERE = importlib.util.find_spec("vllm") is not None
collect_ignore_glob = [] if HERE else ["test_*.py"]


def stop(engine: Any) -> None:
    """Ends an engine that runs in this process, so that the next one can start."""
    import gc

    from vllm.distributed import cleanup_dist_env_and_memory

    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def sceneqa() -> Iterator[Any]:
    """An engine with the model that ships."""
    from serving.engine import start

    from segmo.sceneqa.model import MODEL_PATH

    engine = start(MODEL_PATH)
    yield engine
    stop(engine)
