"""Keeps an error message that nobody reads from fixing the number of video tokens."""

from __future__ import annotations

import inspect
from typing import Any

from torch._dynamo.symbolic_convert import InstructionTranslatorBase
from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.tensor import SymNodeVariable

WHAT = "Dynamo's InstructionTranslatorBase._format_value"
VERSIONS = "torch 2.11 to 2.15"

# Whoever calls transformers' check formats its message first, with both counts.
_CHECK = "torch_compilable_check"


def keep_counts_symbolic() -> bool:
    """Formats a symbolic size as its symbol, in functions that call transformers' placeholder check.

    transformers formats ``features.shape[0]`` into the message of that check. Dynamo formats a symbolic size by
    guarding on its value, so each length of video would compile again, and after eight of them Dynamo gives up and runs
    eagerly. The message itself is never used in a trace. Returns whether Dynamo is of the kind this knows.
    """
    if fits() is not None:
        return False
    original: Any = InstructionTranslatorBase._format_value
    if getattr(original, "segmo", False):
        return True

    def _format_value(self: Any, fmt_spec: Any, flags: int) -> None:
        if _CHECK in self.f_code.co_names and isinstance(self.stack[-1], SymNodeVariable):
            self.push(ConstantVariable.create(str(self.pop().sym_num)))
        else:
            original(self, fmt_spec, flags)

    _format_value.segmo = True  # type: ignore[attr-defined]
    InstructionTranslatorBase._format_value = _format_value  # type: ignore[method-assign]
    return True


def fits() -> str | None:
    """The method must be there and take what it is given here."""
    method = getattr(InstructionTranslatorBase, "_format_value", None)
    if method is None:
        return "Dynamo's translator has no _format_value"
    takes = list(inspect.signature(method).parameters)
    return None if takes == ["self", "fmt_spec", "flags"] else f"_format_value takes {', '.join(takes)}"
