"""How Dynamo has to be set up so that a Video LLM's prefill is one graph, and which model a graph came from."""

from __future__ import annotations

import linecache
import sys
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.symbolic_convert import InstructionTranslatorBase
from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.tensor import SymNodeVariable

from segmo.families import FAMILIES
from segmo.report.setup import Setup

# With these off, the placeholder check and Qwen3-VL's deepstack layers break the graph.
FLAGS = ("capture_scalar_outputs", "capture_dynamic_output_shape_ops")
# After so many graphs of one function Dynamo stops compiling and runs eagerly, which only its own log says. Eight, its
# default, are soon used up: prefill and decode for each set of options, model of a class and batch size.
RECOMPILE_LIMIT = 64
# transformers' check that features and placeholder tokens are equally many; its message holds both numbers.
_CHECK = "get_placeholder_mask"


def set_up_dynamo() -> Setup:
    """Sets the flags that are off, and keeps Dynamo from compiling anew for every length of video.

    ``torch.compile`` imports the backend before it traces anything, so this is in time. Flags are process-wide; they
    let Dynamo put more into one graph and change no result.
    """
    changed = tuple(flag for flag in FLAGS if not getattr(torch._dynamo.config, flag))
    for flag in changed:
        setattr(torch._dynamo.config, flag, True)
    if torch._dynamo.config.recompile_limit < RECOMPILE_LIMIT:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        changed = (*changed, "recompile_limit")
    return Setup(changed, _keep_counts_symbolic())


def _keep_counts_symbolic() -> bool:
    """Stops an error message from fixing the number of video tokens.

    transformers formats ``features.shape[0]`` into the message of its placeholder check. Dynamo (2.14) formats a
    symbolic size by guarding on its value, so each length of video would compile again, and after eight of them Dynamo
    gives up and runs eagerly. The message itself is never used in a trace. So in that one function a symbolic size is
    formatted as its symbol. Returns whether Dynamo is of the kind this knows.
    """
    original = getattr(InstructionTranslatorBase, "_format_value", None)
    if original is None:
        return False
    if getattr(original, "segmo", False):
        return True

    def format_value(self: Any, fmt_spec: Any, flags: int) -> None:
        if self.f_code.co_name == _CHECK and isinstance(self.stack[-1], SymNodeVariable):
            self.push(ConstantVariable.create(str(self.pop().sym_num)))
        else:
            original(self, fmt_spec, flags)

    format_value.segmo = True  # type: ignore[attr-defined]
    InstructionTranslatorBase._format_value = format_value  # type: ignore[method-assign]
    return True


def calling_model() -> torch.nn.Module | None:
    """The model that Dynamo is compiling a piece of: the outermost module of a known family that is being called.

    A graph does not say which model it came from, and the config is needed for what the graph does not say either.
    Falls back to the outermost module that has a transformers config.
    """
    candidates: list[torch.nn.Module] = []
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module) and hasattr(module, "config"):
            candidates.append(module)
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    known = [m for m in candidates if getattr(m.config, "model_type", None) in FAMILIES]
    return (known or candidates or [None])[-1]


# Between a user's line and the backend lies nothing but these.
_BETWEEN = ("torch", "transformers", "segmo", "typer", "click")


def calling_line() -> str | None:
    """The user's line that called the model, as ``file:line: code``; None if SegMo's command line did."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "segmo.cli":
            return None
        if name.partition(".")[0] not in _BETWEEN:
            path = frame.f_code.co_filename
            code = linecache.getline(path, frame.f_lineno).strip()
            return f"{path}:{frame.f_lineno}" + (f": {code}" if code else "")
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return None


def chooses_frames(model: torch.nn.Module | None) -> bool:
    """Whether SegMo stands between this model and its vision encoder (see :mod:`segmo.upstream.encoder`)."""
    base = getattr(model, "base_model", None)
    return hasattr(getattr(base, "get_video_features", None), "segmo")
