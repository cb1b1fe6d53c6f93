"""The report that a user gets: the record of what was done, as a file, as a page, and as a warning."""

from __future__ import annotations

import html
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segmo.errors import NotRewrittenError
from segmo.options import Options
from segmo.report.record import GraphReport, Record

_FRAME = "width:100%;height:720px;border:1px solid #dde2e6;border-radius:8px"


@dataclass
class Report(Record):
    """The record of one compiled model, to be printed, saved or shown in a notebook."""

    def save(self) -> None:
        """Writes ``segmo-report.json`` and ``segmo-report.html`` into the folder of the option ``report``, if given.

        Where that fails, a full disk say, it is a warning: the answer that it is about does not depend on it.
        """
        if self.options.report is None:
            return
        folder = Path(self.options.report)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "segmo-report.json").write_text(json.dumps(self.to_dict(), indent=1))
            (folder / "segmo-report.html").write_text(self.to_html(), encoding="utf-8")
        except OSError as error:
            warnings.warn(f"SegMo could not write its report into {folder}: {error}", stacklevel=2)

    def to_html(self, targets: Sequence[str] = ()) -> str:
        """The report as one HTML page that needs no other file and no network.

        Args:
            targets: architectures (``"sm_90"``, ...) for which the generated kernels are compiled, to show what the
                compiler made of them. Takes seconds for each; no GPU is needed.

        Raises:
            KernelError: a target that is not known.
        """
        from segmo.report.html.page import render_page  # only who wants a page loads what draws it

        return render_page(self, targets)

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, which can reach neither the notebook nor the network."""
        page = html.escape(self.to_html())
        return f'<iframe sandbox="allow-scripts" srcdoc="{page}" style="{_FRAME}" title="SegMo report"></iframe>'


def complain(graph: GraphReport, options: Options) -> None:
    """A pass that should have applied and did not is an error under ``strict``, and one warning otherwise.

    Raises:
        NotRewrittenError: see above.
    """
    lost = graph.unexpected()
    if not lost:
        return
    places = [f", at {miss.place}" if miss.place else "" for _, miss in lost]
    text = "; ".join(
        f"{name}: {miss.reason} (to change that: {miss.remedy}){place}"
        for (name, miss), place in zip(lost, places, strict=True)
    )
    part = "a part of " if graph.rewritten else ""
    graph_kind = "a graph" if graph.kind == "other" else f"a {graph.kind} graph"
    message = f"SegMo left {part}{graph_kind} as it was. {text}"
    if options.strict:
        raise NotRewrittenError(message)
    warnings.warn(message, stacklevel=2)
