"""Imports run downwards only, and never in a circle: read from the code of the installed package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import segmo
import segmo.passes
import segmo.runtime

# The layers, from the top. A room may import itself and what lies below; rooms of one layer do not know each other.
# CONTRIBUTING.md shows the same lines.
LAYERS = """\
cli
commands
demo
ask | inspection | integrations
sceneqa
memory
api
calls
upstream
compiler | video
report
passes
runtime
ground
"""
# Modules that stand beside the rooms, and the room that they count to.
BESIDE = {
    "segmo": "memory",  # the names that users import
    "segmo.__main__": "cli",
    **dict.fromkeys(
        (
            *("segmo.errors", "segmo.options", "segmo.families", "segmo.pretrained", "segmo.bfloat16"),
            *("segmo.scoped", "segmo.compat", "segmo.checked"),
        ),
        "ground",
    ),
}
DEPTH = {room: depth for depth, line in enumerate(LAYERS.splitlines()) for room in line.split(" | ")}


def modules() -> dict[str, Path]:
    """Every module of the package, and its file."""
    found = {}
    for package in (segmo, segmo.passes, segmo.runtime):
        for folder in map(Path, package.__path__):
            for path in folder.rglob("*.py"):
                parts = (package.__name__, *path.relative_to(folder).with_suffix("").parts)
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports anywhere: at its top, in functions, and for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in inside]
        else:
            continue
        yield from (name for name in names if name in known)


def room(module: str) -> str:
    """The room that a module stands in."""
    for beside, home in BESIDE.items():
        if module == beside or (beside != "segmo" and module.startswith(f"{beside}.")):
            return home
    return module.split(".")[1]


def upward(source: str, target: str) -> bool:
    """Whether an import of ``target`` in ``source`` goes to a room that does not lie below."""
    return room(source) != room(target) and DEPTH[room(source)] >= DEPTH[room(target)]


@pytest.fixture(scope="module")
def imports() -> nx.DiGraph:
    known = modules()
    graph = nx.DiGraph()
    graph.add_nodes_from(known)
    graph.add_edges_from(
        (name, other) for name, path in known.items() for other in imported(path, known) if other != name
    )
    return graph


def test_the_whole_package_is_read(imports: nx.DiGraph) -> None:
    assert {"segmo.api", "segmo.passes.cut", "segmo.runtime.kernels.specs"} <= set(imports)
    assert imports.has_edge("segmo.compiler.backend", "segmo.passes.runner")


def test_every_room_has_its_layer(imports: nx.DiGraph) -> None:
    lost = sorted(module for module in imports if room(module) not in DEPTH)
    assert not lost, f"say in LAYERS or BESIDE where these stand: {lost}"


def test_imports_run_downwards(imports: nx.DiGraph) -> None:
    wrong = sorted(f"{source} -> {target}" for source, target in imports.edges if upward(source, target))
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle(imports: nx.DiGraph) -> None:
    circles = [sorted(circle) for circle in nx.strongly_connected_components(imports) if len(circle) > 1]
    assert not circles


@pytest.mark.parametrize(
    ("source", "target", "wrong"),
    [
        ("segmo.runtime.ops", "segmo.passes.cut", True),
        ("segmo.passes.cut", "segmo.compiler.capture", True),
        ("segmo.passes.cut", "segmo.report.record", True),
        ("segmo.ask.ask", "segmo.inspection.run", True),
        ("segmo.compiler.backend", "segmo.runtime.ops", False),
        ("segmo.report.html.page", "segmo.report.record", False),
        ("segmo.options", "segmo.errors", False),
    ],
)
def test_what_counts_as_upwards(source: str, target: str, wrong: bool) -> None:
    assert upward(source, target) is wrong


def test_the_contributors_page_shows_these_layers() -> None:
    page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```text\n{LAYERS}```" in page
