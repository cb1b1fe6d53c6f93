"""``segmo families``: what SegMo does for which Video LLM."""

from __future__ import annotations

from dataclasses import astuple
from typing import Annotated

import typer


def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="print the page of the documentation")] = False,
) -> None:
    """Show for every family what is tested, what is inferred, and why the rest does not apply."""
    from segmo.inspection import support

    if markdown:
        print(support.markdown(), end="")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*support.HEADINGS, show_lines=False)
    for row in support.families():
        name, *cells = astuple(row)
        table.add_row(name, *(cell if cell in (support.TESTED, support.INFERRED) else f"no: {cell}" for cell in cells))
    Console().print(table)
