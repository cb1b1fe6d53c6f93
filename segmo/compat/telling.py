"""What a model says in the midst of a call (``print``, warnings, loggers): by default each such call breaks the graph.

Dynamo can have them behind the graph instead (``reorderable_logging_functions``), but does so only for the function
that is compiled, and loses what the functions say that it calls. Of a model those are all, so here they are kept too.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch._dynamo
from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.variables import misc

WHAT = "torch._dynamo.variables.misc.DebuggingVariable and reorderable_logging_functions"
VERSIONS = "torch 2.11 to 2.15"

# transformers adds some to loggers.
_LEVELS = ("debug", "info", "warning", "error", "critical", "log", "info_once", "warning_once", "warning_advice")


class Words(set[Callable[..., Any]]):
    """A set of such functions that is SegMo's: with another one Dynamo is as it was."""


def in_our_call() -> bool:
    """Whether Dynamo is tracing for a call of SegMo's."""
    return isinstance(torch._dynamo.config.reorderable_logging_functions, Words)


def words(asked: Iterable[Callable[..., Any]]) -> Words:
    """Those whose calls go behind the graph: what is asked for, and all that models use where Dynamo is as known."""
    if not keep_words():
        return Words(asked)
    of_loggers = (vars(logging.Logger)[name] for name in _LEVELS if name in vars(logging.Logger))
    return Words((builtins.print, warnings.warn, *of_loggers, *asked))


@functools.cache
def keep_words() -> bool:
    """From now on the words of called functions are kept. Returns whether Dynamo is as this file knows it."""
    if fits() is not None:
        return False
    variable: Any = misc.DebuggingVariable
    original = variable.call_function

    @functools.wraps(original)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        return original(self, tx.output.root_tx if in_our_call() else tx, args, kwargs)

    variable.call_function = call_function
    return True


def fits() -> str | None:
    """Words must be collected by the tracer of a function, and written behind the graph from that of the outermost."""
    if not hasattr(misc, "DebuggingVariable") or not hasattr(torch._dynamo.config, "reorderable_logging_functions"):
        return "Dynamo has no reorderable_logging_functions"
    collects = inspect.getsource(inspect.unwrap(misc.DebuggingVariable.call_function))
    if "tx.debug_locals.append(" not in collects or "self.root_tx = " not in inspect.getsource(OutputGraph.__init__):
        return "what is said is collected in another place"
    # Of the whole module: to find a class in it, inspect parses all of it, which takes a third of a second.
    written = "tx.debug_locals" in inspect.getsource(sys.modules[OutputGraph.__module__])
    return None if written else "it is written in another place"
