"""Dynamo's exceptions, the module it makes of a module, its log for tlparse, and its clock."""

from __future__ import annotations

import torch._dynamo.utils
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, RestartAnalysis
from torch._logging._internal import trace_structured_artifact

__all__ = [
    "BackendCompilerFailed",
    "FailOnRecompileLimitHit",
    "OptimizedModule",
    "RestartAnalysis",
    "compile_seconds",
    "fits",
    "trace_structured_artifact",
]

WHAT = "torch._dynamo.exc, torch._dynamo.utils and torch._logging"
VERSIONS = "torch 2.11 to 2.15"

_FRAME = "entire_frame_compile"  # tracing a frame and calling the backend


def compile_seconds() -> float:
    """Seconds that Dynamo has spent in this process on tracing and compiling."""
    return float(torch._dynamo.utils.cumulative_time_spent_ns.get(_FRAME, 0.0)) / 1e9


def fits() -> str | None:
    """A failure of a backend must carry what was raised in it, and the clock must be there."""
    if "inner_exception" not in BackendCompilerFailed.__init__.__annotations__:
        return "BackendCompilerFailed carries no inner_exception"
    if not hasattr(torch._dynamo.utils, "cumulative_time_spent_ns"):
        return "torch._dynamo.utils has no cumulative_time_spent_ns"
    return None
