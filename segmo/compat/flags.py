"""The flags of Dynamo that a Video LLM's prefill needs to be one graph."""

from __future__ import annotations

import torch
import torch._dynamo

WHAT = "torch._dynamo.config"
VERSIONS = "torch 2.11 to 2.15"

# With these off, the placeholder check and Qwen3-VL's deepstack layers break the graph.
FLAGS = ("capture_scalar_outputs", "capture_dynamic_output_shape_ops")
# After so many graphs of one function Dynamo stops compiling and runs eagerly, which only its own log says. Eight, its
# default, are soon used up: prefill and decode for each set of options, model of a class and batch size.
RECOMPILE_LIMIT = 64


def set_flags() -> tuple[str, ...]:
    """Sets the flags that are off and the limit that is too low. Returns the names of those that it changed."""
    changed = tuple(flag for flag in FLAGS if not getattr(torch._dynamo.config, flag))
    for flag in changed:
        setattr(torch._dynamo.config, flag, True)
    if torch._dynamo.config.recompile_limit < RECOMPILE_LIMIT:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        changed = (*changed, "recompile_limit")
    return changed


def fits() -> str | None:
    """The names must still be there."""
    gone = [name for name in (*FLAGS, "recompile_limit") if not hasattr(torch._dynamo.config, name)]
    return f"torch._dynamo.config has no {', '.join(gone)}" if gone else None
