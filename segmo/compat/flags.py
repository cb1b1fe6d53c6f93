"""The flags of Dynamo that a Video LLM's prefill needs to be one graph."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch._dynamo import side_effects

from segmo.compat.telling import words

WHAT = "torch._dynamo.config"
VERSIONS = "torch 2.11 to 2.15"

# With these off, the placeholder check and Qwen3-VL's deepstack layers break the graph.
FLAGS = ("capture_scalar_outputs", "capture_dynamic_output_shape_ops")
# After so many graphs of one function Dynamo stops compiling and runs eagerly, which only its own log says. Eight, its
# default, are soon used up: prefill and decode for each set of options, model of a class and batch size.
RECOMPILE_LIMIT = 64

_TOLD = "side_effect_replay_policy"  # how Dynamo tells what a graph writes to objects; older ones have no such setting


def missing() -> tuple[str, ...]:
    """Names of the flags that are off and of the limit if it is too low: what :func:`hold` changes."""
    config = torch._dynamo.config
    off = tuple(flag for flag in FLAGS if not getattr(config, flag))
    return (*off, "recompile_limit") if config.recompile_limit < RECOMPILE_LIMIT else off


def hold() -> Callable[[], None]:
    """Sets the flags, in this thread and context, until what it returns is called.

    From torch 2.12 on a setting holds for the thread that made it alone, so it is made around each call of what was
    compiled; and other calls, of other backends among them, see nothing of it. When the limit of graphs is reached,
    Dynamo would run the model as it was and say so in its own log alone: it fails instead.
    """
    config = torch._dynamo.config
    limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    silent = getattr(config, _TOLD, None) == "info" and not _is_heard()
    return _patcher(limit, frozenset(config.reorderable_logging_functions), silent)()


def _is_heard() -> bool:
    """Whether a log or a trace for tlparse is kept of what a graph writes to objects.

    Dynamo words that with the source lines of every write, of each layer's keys and values among them, in any case.
    """
    # Torch's own handler of traces is there before the first one; without a folder it goes when it gets one.
    traces = [each for each in logging.getLogger("torch.__trace").handlers if getattr(each, "root_dir", "") is not None]
    log = getattr(side_effects, "side_effects_log", None)
    return bool(traces) or log is None or log.isEnabledFor(logging.DEBUG)


def hold_limit() -> Callable[[], None]:
    """As :func:`hold`, for the limit alone: where a vision encoder may be traced, the flags break some of them."""
    limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    return _config(recompile_limit=limit)()


@functools.cache
def _patcher(limit: int, asked: frozenset[Callable[..., Any]], silent: bool) -> Callable[[], Callable[[], None]]:
    # Inside of DistributedDataParallel, Dynamo would cut the graph at the buckets of gradients, which nobody computes.
    return _config(
        **dict.fromkeys(FLAGS, True),
        recompile_limit=limit,
        fail_on_recompile_limit_hit=True,
        optimize_ddp=False,
        reorderable_logging_functions=words(asked),
        **({_TOLD: "silent"} if silent else {}),
    )


def hold_sizes(fixed: bool) -> Callable[[], None]:
    """Whether sizes are numbers in what is compiled until what it returns is called; otherwise they are symbols.

    Left alone, Dynamo makes those sizes symbols that it has seen to vary, in whatever model of the class: after one
    model's decode steps another's first prefill would be of fixed length here and of any length there.
    """
    return (_FIXED if fixed else _SYMBOLS)()


def _config(**changes: Any) -> Callable[[], Callable[[], None]]:
    change: Callable[[], Callable[[], None]] = torch._dynamo.config._make_closure_patcher(**changes)
    return change


_FIXED = _config(assume_static_by_default=True, automatic_dynamic_shapes=False)
_SYMBOLS = _config(assume_static_by_default=False)


def fits() -> str | None:
    """The names must still be there."""
    own = ("recompile_limit", "fail_on_recompile_limit_hit", "optimize_ddp", "reorderable_logging_functions")
    names = (*FLAGS, *own, "_make_closure_patcher")
    gone = [name for name in names if not hasattr(torch._dynamo.config, name)]
    return f"torch._dynamo.config has no {', '.join(gone)}" if gone else None
