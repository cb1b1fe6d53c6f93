"""Dynamo's exceptions, the module it makes of a module, its log for tlparse, its clock, and what it leaves alone."""

from __future__ import annotations

import os
from typing import Any

import torch._dynamo.utils
from torch._C._dynamo import eval_frame
from torch._dynamo.convert_frame import input_codes, output_codes
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, RestartAnalysis
from torch._logging._internal import trace_structured_artifact
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = [
    "SWITCHED_OFF",
    "BackendCompilerFailed",
    "FailOnRecompileLimitHit",
    "OptimizedModule",
    "RestartAnalysis",
    "compile_seconds",
    "fits",
    "is_compiled",
    "switched_off",
    "trace_again",
    "trace_structured_artifact",
    "why_left_alone",
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


SWITCHED_OFF = "TORCHDYNAMO_DISABLE=1 switches torch.compile off: models run as they are. Unset it to use SegMo"


def switched_off() -> bool:
    """Whether torch.compile gives back what it was given, without a word to the backend."""
    return os.environ.get("TORCHDYNAMO_DISABLE") == "1"


def why_left_alone() -> str:
    """Why Dynamo ran a call as it was, as far as it can be told from outside."""
    if torch._dynamo.config.disable:
        return "torch._dynamo.config.disable is set, or TORCH_COMPILE_DISABLE=1"
    stance = torch._dynamo.eval_frame._stance.stance
    if stance != "default":
        return f'torch.compiler.set_stance("{stance}") is in force'
    mode = _get_current_dispatch_mode()
    if mode is not None:
        return f"inside {type(mode).__name__}, as inside most dispatch modes, it compiles nothing"
    return 'TORCH_LOGS="dynamo" says why'


_TRACED = eval_frame._FrameExecStrategy(eval_frame._FrameAction.DEFAULT, eval_frame._FrameAction.DEFAULT)


def fits() -> str | None:
    """A failure of a backend must carry what was raised in it; clock, stance and the way to trace again be there."""
    if "inner_exception" not in BackendCompilerFailed.__init__.__annotations__:
        return "BackendCompilerFailed carries no inner_exception"
    if not hasattr(torch._dynamo.utils, "cumulative_time_spent_ns"):
        return "torch._dynamo.utils has no cumulative_time_spent_ns"
    if not hasattr(getattr(torch._dynamo.eval_frame, "_stance", None), "stance"):
        return "torch._dynamo.eval_frame has no stance"
    if not hasattr(eval_frame, "set_code_exec_strategy"):
        return "torch._C._dynamo.eval_frame has no set_code_exec_strategy"
    return None
