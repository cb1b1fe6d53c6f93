"""transformers' check that features and placeholders are equally many, in a form that every Dynamo can trace.

In a trace ``torch_compilable_check`` hands its condition to Dynamo as a hint. torch 2.11 leaves the scalar of a hint
that is a tensor unbound (``PendingUnbackedSymbolNotFound`` at the merge); a hint about the size of ``embeds[mask]``
(Gemma 4, MiniCPM-V 4.7) ends in ``tgt_bound ... not a subset of src_bound`` in every torch. So a trace gets an
assertion instead, which runs with the graph and teaches Dynamo nothing. Outside of a trace nothing changes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from segmo.compat.versions import installed

WHAT = "transformers.utils.import_utils.torch_compilable_check"
VERSIONS = "transformers 5.18 to 5.24, torch 2.11 to 2.15"

_MESSAGE = (
    "a check of transformers failed in a compiled graph, most likely because the prompt has more or fewer placeholder "
    "tokens than there are features of its video or images; the model run eagerly says which"
)
_PARAMETERS = ["cond", "msg", "error_type"]


def assert_in_the_graph() -> bool:
    """Replaces the check in traces, for the whole process. Returns whether there was one to replace."""
    if fits() is not None:
        return False
    check = _original()
    if check is not None:
        _replace(check)
    return check is not None


@functools.cache
def _replace(check: Callable[..., None]) -> None:
    torch.compiler.substitute_in_graph(check)(_traced)


def _original() -> Callable[..., None] | None:
    try:
        from transformers.utils.import_utils import torch_compilable_check
    except ImportError:
        return None
    check: Callable[..., None] = torch_compilable_check
    return check


def _traced(cond: Any, msg: Any, error_type: type[Exception] = ValueError) -> None:
    """What Dynamo traces in the check's place."""
    if callable(cond):
        cond = cond()
    if isinstance(cond, torch.Tensor):
        torch._assert_async(cond.all(), _MESSAGE)
    else:  # a bool, or a comparison of symbolic sizes
        torch._assert_async(torch.scalar_tensor(cond, dtype=torch.bool), _MESSAGE)


def fits() -> str | None:
    """Where there is a transformers, the check must be there, and its arguments those that the replacement has."""
    check = _original()
    if check is None:
        return "transformers has no torch_compilable_check" if installed("transformers") else None
    takes = list(inspect.signature(check).parameters)
    return None if takes == _PARAMETERS else f"torch_compilable_check takes {', '.join(takes)}"
