"""What importing the backend set in the process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """What importing the backend set in Dynamo, for the report."""

    flags: tuple[str, ...]
    one_graph_for_all_lengths: bool
