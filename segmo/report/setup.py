"""How Dynamo runs what is compiled for SegMo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """What is set in Dynamo while a model runs that SegMo compiled, for the report."""

    flags: tuple[str, ...]
    one_graph_for_all_lengths: bool
