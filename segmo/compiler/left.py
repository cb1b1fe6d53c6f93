"""A prompt that runs as it was without coming to a graph: the report and the warning are those of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from segmo.compiler.backend import SETUP
from segmo.compiler.capture import calling_line
from segmo.options import Options
from segmo.passes.base import Pass
from segmo.passes.pipeline import build_pipeline
from segmo.passes.reasons import Miss
from segmo.passes.runner import PassRecord, Result
from segmo.passes.snapshot import Written
from segmo.report.history import report_for
from segmo.report.report import complain


def leave_prefill(model: Any, options: Options, miss: Miss) -> None:
    """Says in the report of a model, and by a warning, why a prompt runs as it was; see :func:`leave`."""
    leave(model, options, "prefill", build_pipeline(options), miss)


def leave(model: Any, options: Options, kind: str, passes: Sequence[Pass], miss: Miss) -> None:
    """Says in the report of a model, and by a warning, why a graph runs as it was, or is not there.

    Args:
        model: a transformers Video LLM.
        options: that it was compiled with.
        kind: of the graph.
        passes: that would have changed it.
        miss: the reason.

    Raises:
        NotRewrittenError: under ``strict=True``, something was lost by it.
    """
    miss = replace(miss, source=calling_line())
    none = Written("")
    records = [PassRecord(each.name, each.tier.value, 0, (miss,), 0.0, {}, {}, none, none) for each in passes]
    report = report_for(model, options, SETUP)
    known = [graph for graph in report.graphs if any(m.reason == miss.reason for r in graph.passes for m in r.misses)]
    graph = known[0] if known else report.add(kind, Result(records))
    report.save()
    complain(graph, options)
