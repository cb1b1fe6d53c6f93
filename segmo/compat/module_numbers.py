"""Numbers that modules hold (a norm's epsilon, a scale) are numbers in a graph, until one of them changes.

With symbolic sizes Dynamo makes every float an input. One that is handed to a call as an argument, as every embedding's
``norm_type`` is, turns out to be a constant in inductor alone, after a third of its work, and all begins again.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch._dynamo
from torch._dynamo.variables import builder

from segmo.compat.telling import in_our_call

WHAT = "torch._dynamo.variables.builder.VariableBuilder.wrap_symfloat"
VERSIONS = "torch 2.11 to 2.15"


@functools.cache
def keep_module_numbers() -> bool:
    """From now on they are, in SegMo's calls. Returns whether Dynamo is as this file knows it."""
    if fits() is not None:
        return False
    variable: Any = builder.VariableBuilder
    original = variable.wrap_symfloat

    @functools.wraps(original)
    def wrap_symfloat(self: Any, value: float) -> Any:
        if not in_our_call() or not self.source.guard_source.is_unspecialized_nn_module():
            return original(self, value)
        # As for sizes: a constant with a guard, and an input from the first call on in which it is another.
        with torch._dynamo.config.patch(assume_static_by_default=True):
            return original(self, value)

    variable.wrap_symfloat = wrap_symfloat
    return True


def fits() -> str | None:
    """Where Dynamo wraps a float, it must ask whether it is constant, and whose it is."""
    found = getattr(builder.VariableBuilder, "wrap_symfloat", None)
    if found is None:
        return "Dynamo wraps floats in another place"
    source = inspect.getsource(inspect.unwrap(found))
    asked = "assume_static_by_default" in source and "is_unspecialized_nn_module" in source
    return None if asked else "Dynamo wraps floats in another way"
