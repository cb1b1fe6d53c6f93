"""``torch.compile(isolate_recompiles=True)``: one model's graphs do not count towards another's limit of graphs."""

from __future__ import annotations

import inspect
from typing import Any

import torch

WHAT = "torch.compile's isolate_recompiles"
VERSIONS = "torch 2.12 and later; before, graphs of all models of a class count together"


def isolated() -> dict[str, Any]:
    """The argument for ``torch.compile`` and ``Module.compile``, where torch has it."""
    return {"isolate_recompiles": True} if _NAME in inspect.signature(torch.compile).parameters else {}


_NAME = "isolate_recompiles"


def fits() -> str | None:
    """Module.compile must hand its arguments on to torch.compile."""
    kinds = {parameter.kind for parameter in inspect.signature(torch.nn.Module.compile).parameters.values()}
    return None if inspect.Parameter.VAR_KEYWORD in kinds else "Module.compile takes no keywords for torch.compile"
