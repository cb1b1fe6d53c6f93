"""What the demo prints."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from segmo.demo.edit import Shot
from segmo.demo.memory import Remembered, memory_table
from segmo.demo.prefill import Timing, Way, four_ways
from segmo.demo.tables import match_cuts, scene_table, timing_table
from segmo.options import Options

SHOTS = (
    Shot("bus", "bikes", 0, 30, 6.0, 0.5),
    Shot("driver", "bikes", 30, 56, 4.0, 1.0),
    Shot("rabbit", "bigbuckbunny", 0, 60, 10.0, 0.25),
)


def text_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_times_are_compared_with_the_first_way() -> None:
    eager, fast = Way("eager", "all", None), Way("CAS+LSP", "some", {"keep": 0.25})
    text = text_of(timing_table([Timing(eager, 4.0, 0.0, 1000, 1000), Timing(fast, 0.5, 1.26, 1000, 280)]))
    rows = [line.split() for line in text.splitlines() if "│" in line]
    assert any("1.0x" in row and "4.00" in row for row in rows)
    assert any({"8.0x", "0.50", "1,000", "280", "1.3"} <= set(row) for row in rows)


def test_questions_to_a_memory_are_added_to_its_watching() -> None:
    eager = Timing(Way("eager", "all", None), 4.0, 0.0, 1000, 1000)
    text = text_of(memory_table(Remembered(2.5, (0.2, 0.5, 0.4, 0.3, 0.6), 12.0), [eager]))
    rows = [line.split() for line in text.splitlines() if "│" in line]
    assert any({"eager", "4.00", "20.00", "1.0x"} <= set(row) for row in rows)
    assert any({"memory", "2.50", "0.40", "4.50", "4.4x"} <= set(row) for row in rows)


@given(keep=st.floats(0.05, 1), segments=st.sampled_from(["scene", 8, "equal:4"]))
def test_the_four_ways_are_options_that_are_allowed(keep: float, segments: int | str) -> None:
    ways = four_ways(keep, segments)
    assert [way.name for way in ways] == ["eager", "LSP", "CAS", "CAS+LSP"]
    assert ways[0].options is None
    for way in ways[1:]:
        Options.parse(way.options)


TIMES = st.lists(st.integers(0, 60).map(float), max_size=8, unique=True)


@given(starts=TIMES, cuts=TIMES, tolerance=st.integers(0, 5))
def test_cuts_are_matched_one_to_one_within_the_tolerance(
    starts: list[float], cuts: list[float], tolerance: int
) -> None:
    found = match_cuts(starts, cuts, tolerance)
    assert set(found) <= set(cuts)
    assert set(found.values()) <= set(starts)
    assert len(set(found.values())) == len(found)
    assert all(abs(cut - start) <= tolerance for cut, start in found.items())
    lonely_cuts = [cut for cut in cuts if cut not in found]
    lonely_starts = [start for start in starts if start not in found.values()]
    assert all(abs(cut - start) > tolerance for cut in lonely_cuts for start in lonely_starts)


def test_scenes_are_named_by_what_they_show_and_counted_against_the_cuts() -> None:
    bounds = [(0, 3), (3, 7), (7, 10)]  # of two seconds each; the cuts are at 6 and at 10 seconds
    scenes = [{"start_frame": a, "end_frame": b, "tokens": 100, "kept": 25, "relevance": 0.125} for a, b in bounds]
    table, summary = scene_table(scenes, SHOTS, 2.0)
    text = text_of(table)
    first, second, third = (line for line in text.splitlines() if "0.1250" in line)
    assert "bus" in first
    assert "driver" not in first
    assert "yes, 0:06" in second
    assert "driver, rabbit" in second
    assert "no" in third.split()
    assert "rabbit" in third
    assert "25%" in third
    assert summary == (
        "1 of 2 true cuts found to within one frame (2 s), missed at 0:10; 1 scene starts inside a shot."
    )


@pytest.mark.parametrize(("starts", "expected"), [([6.5, 5.9], {6.0: 5.9}), ([9.0], {}), ([], {})])
def test_the_nearest_start_is_taken(starts: list[float], expected: dict[float, float]) -> None:
    assert match_cuts(starts, [6.0], 1.0) == expected
