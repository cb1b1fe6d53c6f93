"""Graphs as text that can be compared: one node a line, under the name that it keeps through all passes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from segmo.errors import OptionError
from segmo.report.record import GraphReport

_FREED = re.compile(r";  (?:[A-Za-z_]\w* = )+None$")
_INPUT = re.compile(r'(\w+)(?:: "([^"]*)")?(?:, |$)')
_SIGNATURE = re.compile(r"\s*def forward\(self(?:, )?(.*)\):$")
_NAME = re.compile(r'(\w+)(?:: "[^"]*")? = ')
_COMMENT = "# File: "


def readable(text: str, *, sources: bool = True) -> list[str]:
    """The lines of a graph's code: inputs one a line, without what says when a value is freed.

    Freeing moves with the last use, so it would show up as a change of nodes that no pass has touched.

    Args:
        text: ``PassRecord.text_before`` or ``text_after``.
        sources: keep the comments that name the model's source lines.
    """
    lines = []
    for line in text.splitlines():
        signature = _SIGNATURE.match(line)
        if signature:
            lines += [f'input {name}: "{kind}"' if kind else f"input {name}" for name, kind in _inputs(signature[1])]
            continue
        stripped = _FREED.sub("", line.strip())
        if not stripped or stripped.startswith("class GraphModule"):
            continue
        if sources or not stripped.startswith("#"):
            lines.append(stripped)
    return lines


def _inputs(text: str) -> Iterator[tuple[str, str]]:
    for match in _INPUT.finditer(text):
        yield match[1], match[2] or ""


def node_name(line: str) -> str:
    """The name of the node that a line of :func:`readable` stands for; empty for the output and comments."""
    match = _NAME.match(line.rpartition(";  ")[2])  # a call in place stands in front of the name of its result
    return match[1] if match else line.removeprefix("input ").split(":")[0] if line.startswith("input ") else ""


def graph_at(graph: GraphReport, which: str) -> str:
    """The text of a graph before all passes, after all, or after one.

    Raises:
        OptionError: no such pass ran.
    """
    if not graph.passes:
        raise OptionError("no pass ran, so no text of the graph was kept; leave a pass in the pipeline")
    if which == "before":
        return graph.passes[0].text_before
    if which == "after":
        return graph.passes[-1].text_after
    return _record_texts(graph, which)[1]


def _record_texts(graph: GraphReport, name: str) -> tuple[str, str]:
    for record in graph.passes:
        if record.name == name:
            return record.text_before, record.text_after
    names = ", ".join(record.name for record in graph.passes)
    raise OptionError(f"no pass {name!r} ran on this graph; passes that ran: {names or 'none'}")


def diff(graph: GraphReport, name: str, context: int = 3) -> list[str]:
    """A unified diff of what one pass did, source comments left out; empty if it changed nothing.

    Raises:
        OptionError: no such pass ran.
    """
    before, after = (readable(text, sources=False) for text in _record_texts(graph, name))
    return list(difflib.unified_diff(before, after, f"before {name}", f"after {name}", n=context, lineterm=""))
