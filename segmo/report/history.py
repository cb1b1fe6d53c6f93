"""Which reports there are: one for each compiled model, the last one, and those that a ``with`` block collects."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segmo.errors import SegMoError
from segmo.report.report import Report
from segmo.scoped import Scoped

if TYPE_CHECKING:
    import torch

    from segmo.options import Options
    from segmo.report.setup import Setup


@dataclass(frozen=True)
class _Collection:
    """What one ``with`` block has seen: the list it handed out, and the reports of models that were compiled in it."""

    prefills: list[Report] = field(default_factory=list)
    compiled: list[Report] = field(default_factory=list)


_reports: weakref.WeakKeyDictionary[torch.nn.Module, Report] = weakref.WeakKeyDictionary()
_last: list[Report] = []
_COLLECTIONS: Scoped[_Collection] = Scoped("segmo_collections")


def report_for(model: torch.nn.Module | None, options: Options, setup: Setup) -> Report:
    """The report of a model under these options; a new one when it is compiled with others."""
    report = _reports.get(model) if model is not None else None
    if report is None or report.options != options:
        report = Report(options, setup, type(model).__name__ if model is not None else "")
        if model is not None:
            _reports[model] = report
    _last[:] = [report]
    for collection in _COLLECTIONS.values():
        if not any(report is known for known in collection.compiled):
            collection.compiled.append(report)
    return report


def prefilled(report: Report) -> None:
    """Makes this the report of the model that ran a prefill last."""
    _last[:] = [report]
    for collection in _COLLECTIONS.values():
        # The next prefill goes into the same report. Graphs that are still to come (decode) belong to both.
        collection.prefills.append(dataclasses.replace(report))


def last_report() -> Report:
    """The report of the model that was compiled, or ran a rewritten prefill, last.

    Raises:
        SegMoError: nothing was compiled with ``backend="segmo"`` yet (compiling happens in the first call).
    """
    if not _last:
        raise SegMoError(
            'nothing was compiled with backend="segmo" yet; compiling happens when the model is called first'
        )
    return _last[-1]


@contextmanager
def collect_reports() -> Iterator[list[Report]]:
    """Collects a report for every rewritten prefill that runs inside the ``with`` block, in order.

    When the block ends, the reports of models that were compiled in it without running such a prefill follow: there
    nothing was rewritten, and the report says why. Blocks can be nested, and each has a list of its own.
    """
    collection = _Collection()
    try:
        with _COLLECTIONS.block(collection):
            yield collection.prefills
    finally:
        ran = [report.graphs for report in collection.prefills]
        collection.prefills.extend(
            report for report in collection.compiled if not any(report.graphs is graphs for graphs in ran)
        )


def forget(model: torch.nn.Module) -> None:
    """Starts a new report when this model is compiled next."""
    _reports.pop(model, None)
