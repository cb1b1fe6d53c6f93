"""Dynamo's exceptions, the module it makes of a module, its log for tlparse, its clock, and what it gave up."""

from __future__ import annotations

from typing import Any

import torch._dynamo.utils
from torch._C._dynamo import eval_frame
from torch._dynamo.convert_frame import input_codes, output_codes
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
    "is_compiled",
    "trace_again",
    "trace_structured_artifact",
]

WHAT = "torch._dynamo.exc, torch._dynamo.utils and torch._logging"
VERSIONS = "torch 2.11 to 2.15"

_FRAME = "entire_frame_compile"  # tracing a frame and calling the backend


def is_compiled(module: Any) -> bool:
    """Whether Dynamo runs a module or a part of it."""
    parts = module.modules()
    return isinstance(module, OptimizedModule) or any(part._compiled_call_impl is not None for part in parts)


def compile_seconds() -> float:
    """Seconds that Dynamo has spent in this process on tracing and compiling."""
    return float(torch._dynamo.utils.cumulative_time_spent_ns.get(_FRAME, 0.0)) / 1e9


def trace_again(error: BaseException) -> bool:
    """Lets Dynamo trace the functions that an error came through, when they are called next.

    A call that fails while it is traced, because of an argument of the wrong shape, say, is run once more as it was to
    find the same error there. From then on Dynamo leaves every function on the way alone, and no later call would be
    rewritten, whatever its arguments. From torch 2.12 on it does so for one use of ``torch.compile`` alone, which has
    to :meth:`segmo.compat.joining.Asked.start_afresh`.

    Returns:
        Whether there is a function that Dynamo leaves alone from now on.
    """
    found, trace = False, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        room = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if room not in ("torch", "segmo") and code in input_codes and code not in output_codes:
            eval_frame.set_code_exec_strategy(code, _TRACED)
            found = True
        trace = trace.tb_next
    return found


_TRACED = eval_frame._FrameExecStrategy(eval_frame._FrameAction.DEFAULT, eval_frame._FrameAction.DEFAULT)


def fits() -> str | None:
    """A failure of a backend must carry what was raised in it, and the clock and the way to trace again be there."""
    if "inner_exception" not in BackendCompilerFailed.__init__.__annotations__:
        return "BackendCompilerFailed carries no inner_exception"
    if not hasattr(torch._dynamo.utils, "cumulative_time_spent_ns"):
        return "torch._dynamo.utils has no cumulative_time_spent_ns"
    if not hasattr(eval_frame, "set_code_exec_strategy"):
        return "torch._C._dynamo.eval_frame has no set_code_exec_strategy"
    return None
