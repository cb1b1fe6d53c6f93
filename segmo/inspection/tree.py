"""The report as a tree for a terminal: per graph the passes with time, matches, ops and misses."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from segmo.inspection.bisect import Step
from segmo.passes.reasons import Miss
from segmo.passes.runner import PassRecord
from segmo.report.record import GraphReport, op_changes
from segmo.report.report import Report


def report_tree(report: Report) -> Tree:
    """One branch per graph, and the last prefill."""
    tree = Tree(f"[bold]{escape(report.model or 'model')}[/]")
    for number, graph in enumerate(report.graphs):
        tree.add(graph_tree(number, graph))
    if report.prefill:
        tokens = report.prefill.tokens()
        tree.add(
            f"last rewritten prefill: {tokens['prompt']:,} tokens, {tokens['video']:,} of video, {tokens['kept']:,} of "
            f"them kept, {len(report.prefill.scenes())} scenes, {len(report.prefill.segments())} segments"
        )
    return tree


def graph_tree(number: int, graph: GraphReport) -> Tree:
    """One graph."""
    state = "[green]rewritten[/]" if graph.rewritten else "[yellow]runs as it was[/]"
    tree = Tree(f"[bold]graph {number}: {escape(graph.kind)}[/], {state}")
    for record in graph.passes:
        _add_pass(tree, record)
    for note in graph.notes:
        tree.add(f"[dim]note: {escape(note)}[/]")
    return tree


def _add_pass(tree: Tree, record: PassRecord) -> None:
    mark = "[green]✓[/]" if record.matches else "[yellow]–[/]"
    matches = f"{record.matches} match{'' if record.matches == 1 else 'es'}"
    branch = tree.add(
        f"{mark} [bold]{escape(record.name)}[/] ({escape(record.tier)}): {matches}, {1e3 * record.seconds:.1f} ms"
    )
    changes = op_changes(record)
    if changes:
        branch.add("ops: " + ", ".join(f"{escape(name)} {delta:+d}" for name, delta in changes.items()))
    for miss in record.misses:
        _add_miss(branch, miss)


def _add_miss(branch: Tree, miss: Miss) -> None:
    style = "dim" if miss.expected else "red"
    leaf = branch.add(f"[{style}]not applied ({escape(miss.code)}): {escape(miss.reason)}[/]")
    places = [escape(place) for place in (miss.node, miss.source) if place]
    if places:
        leaf.add(f"at {', '.join(places)}")
    leaf.add(f"to change that: {escape(miss.remedy)}")


def bisection_table(steps: list[Step], tolerance: float) -> Table:
    """The steps of a bisection, and which pass leaves the tolerance."""
    table = Table(title=f"next token against the model without SegMo, tolerance {tolerance:g} of the largest logit")
    for name in ("up to pass", "tier"):
        table.add_column(name)
    for name in ("matches", "difference", "same token", "within"):
        table.add_column(name, justify="right")
    for step in steps:
        table.add_row(
            escape(step.name),
            escape(step.tier),
            str(step.matches),
            f"{step.difference:.2e}",
            "yes" if step.same_token else "no",
            "[green]yes[/]" if step.within else "[red]no[/]",
        )
    last = steps[-1]
    table.caption = (
        "no pass leaves it" if last.within else f"{escape(last.name)} ({escape(last.tier)}) is the first to leave it"
    )
    return table
