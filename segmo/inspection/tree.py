"""The report as a tree for a terminal: per graph the passes with time, matches, ops and misses."""

from __future__ import annotations

from rich.markup import escape
from rich.tree import Tree

from segmo.passes.reasons import Miss
from segmo.passes.runner import PassRecord
from segmo.report import GraphReport, Report, op_changes


def report_tree(report: Report) -> Tree:
    """One branch per graph, and the last prefill."""
    tree = Tree(f"[bold]{escape(report.model or 'model')}[/]")
    for number, graph in enumerate(report.graphs):
        tree.add(graph_tree(number, graph))
    if report.prefill:
        tokens = report.prefill.tokens()
        tree.add(
            f"last prefill: {tokens['prompt']:,} tokens, {tokens['video']:,} of video, {tokens['kept']:,} of them "
            f"kept, {len(report.prefill.scenes())} scenes, {len(report.prefill.segments())} segments"
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
    if miss.node:
        leaf.add(f"at {escape(miss.node)}" + (f", {escape(miss.source)}" if miss.source else ""))
    leaf.add(f"to change that: {escape(miss.remedy)}")
