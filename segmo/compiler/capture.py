"""How Dynamo has to be set up so that a Video LLM's prefill is one graph, and which model a graph came from."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from segmo.compat.chunk_loops import make_loops_opaque
from segmo.compat.flags import missing
from segmo.compat.masks import ask_cut_caches
from segmo.compat.module_numbers import keep_module_numbers
from segmo.compat.parts import warn_of_misfits
from segmo.compat.placeholder_check import assert_in_the_graph
from segmo.compat.symbolic_messages import keep_counts_symbolic
from segmo.families import ENCODERS, takes_video
from segmo.report.setup import Setup


def set_up_dynamo() -> Setup:
    """Keeps Dynamo from compiling anew for every length of video, and says which flags it runs SegMo's models with.

    ``torch.compile`` imports the backend before it traces anything, so this is in time.
    """
    assert_in_the_graph()
    make_loops_opaque()
    ask_cut_caches()
    keep_module_numbers()
    setup = Setup(missing(), keep_counts_symbolic())
    warn_of_misfits()
    return setup


_CALLED: ContextVar[tuple[torch.nn.Module | None, tuple[str, ...]]] = ContextVar("segmo_called", default=(None, ()))


@contextmanager
def called(model: torch.nn.Module, notes: tuple[str, ...] = ()) -> Iterator[None]:
    """Inside the block, graphs come from this model, and their reports hold these notes."""
    token = _CALLED.set((model, notes))
    try:
        yield
    finally:
        _CALLED.reset(token)


def calling_model() -> torch.nn.Module | None:
    """The model that Dynamo is compiling a piece of: the one that was :func:`called`.

    A graph does not say which model it came from, and the config is needed for what the graph does not say either.
    Where a function of the user's was compiled, it is the outermost module of a known family that is being called, or
    else the outermost module that has a transformers config.
    """
    model, _ = _CALLED.get()
    if model is not None:
        return model
    candidates: list[torch.nn.Module] = []
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module) and hasattr(module, "config"):
            candidates.append(module)
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    watching = [module for module in candidates if takes_video(module)]
    return (watching or candidates or [None])[-1]


def calling_notes() -> tuple[str, ...]:
    """What :func:`called` was told for the report."""
    return _CALLED.get()[1]


# Between a user's line and the backend lies nothing but these.
_BETWEEN = ("torch", "transformers", "segmo", "typer", "click", "contextlib")


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
    return any(hasattr(getattr(base, name, None), "segmo") for name in ENCODERS)
