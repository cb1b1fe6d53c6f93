"""Intervals, tables and files of an evaluation."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claims import claim_table
from hypothesis import given
from hypothesis import strategies as st
from report import complete_records
from rich.console import Console
from scipy.stats import binomtest

from segmo.sceneqa.plot import draw_results
from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.results import (
    OVERALL,
    Share,
    paired_difference,
    read_results,
    result_table,
    summarise,
    write_csv,
)


@given(st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_interval_is_wilsons(counts: tuple[int, int]) -> None:
    right, total = counts
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert Share(right, total).interval == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_nothing_asked_is_not_a_number() -> None:
    assert math.isnan(Share(0, 0).value)


def _record(name: str, keep: float, right: list[int], kept: int, flops: float) -> dict[str, Any]:
    return {
        "key": f"{name} @ {keep:g}",
        "name": name,
        "keep": keep,
        "kinds": list(KINDS),
        "right": right,
        "kept": kept,
        "flops": flops,
    }


RECORDS = [
    _record("full", 1.0, [1, 1, 1, 0, 1], 100, 10.0),
    _record("full", 1.0, [1, 1, 0, 0, 1], 100, 10.0),
    _record("CAS", 0.5, [1, 0, 0, 0, 1], 50, 4.0),
    _record("uniform", 0.5, [0, 0, 0, 0, 1], 50, 4.0),
]


def test_summary_counts_each_question_once() -> None:
    rows = summarise(RECORDS, {"full @ 1": 2.0, "CAS @ 0.5": 0.5})
    assert [row.name for row in rows] == ["full", "CAS", "uniform"]
    assert rows[0].accuracy["retrieve"] == Share(2, 2)
    assert rows[0].accuracy[OVERALL] == Share(7, 10)
    assert rows[1].flops == pytest.approx(0.4)
    assert rows[1].time == pytest.approx(0.25)
    assert math.isnan(rows[2].time)


def test_table_csv_and_picture_hold_every_row(tmp_path: Path) -> None:
    rows = summarise(RECORDS, {})
    console = Console(record=True, width=200)
    console.print(result_table(rows, "title"))
    assert "100.0 (34.2-100.0)" in console.export_text()
    write_csv(rows, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["full", "CAS", "uniform"]
    assert float(lines[0]["retrieve accuracy"]) == 1.0
    draw_results(rows, "title").savefig(tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_a_picture_has_room_for_every_method_and_no_two_lines_alike() -> None:
    rows = summarise(RECORDS, {})
    many = [replace(rows[2], name=f"rival {number}") for number in range(15)]
    ours = [replace(rows[1], name=f"CAS {number}") for number in range(6)]
    panel = draw_results([rows[0], *many, *ours], "title").axes[0]
    looks = [(line.get_color(), line.get_marker()) for line in panel.lines[: len(many)]]
    assert len(set(looks)) == len(many)


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + json.dumps(RECORDS[1])[:30])
    assert read_results(path) == RECORDS[:1]
    assert read_results(tmp_path / "missing.jsonl") == []


def _answers(rights: list[list[int]]) -> list[dict[str, Any]]:
    return [{"video": number, "kinds": list(KINDS), "right": right} for number, right in enumerate(rights)]


def test_paired_difference_is_by_question_and_sees_through_hard_ones() -> None:
    """Two methods that differ on one question in ten differ by a tenth, however many questions both miss."""
    theirs = _answers([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]] * 50)
    ours = _answers([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]] * 50)
    difference = paired_difference(ours, list(reversed(theirs)))
    assert difference.total == 500
    assert difference.value == pytest.approx(0.1)
    assert difference.half == pytest.approx(1.96 * math.sqrt(0.1 * 0.9 / 499), rel=1e-3)
    assert paired_difference(ours, theirs, ["count"]).value == pytest.approx(0.5)
    assert paired_difference(ours, theirs, ["retrieve"]).value == 0
    assert math.isnan(paired_difference([], []).value)


def test_claims_compare_what_was_run() -> None:
    records = {"CAS+LSP @ 0.25": _answers([[1, 1, 1, 1, 1]]), "full attention @ 1": _answers([[1, 1, 1, 1, 0]])}
    table = claim_table(records, "claims")
    assert table.row_count == 1
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(table)
    assert "+20.0" in console.export_text()


def test_report_leaves_out_incomplete_rows_and_counts_no_answer_twice() -> None:
    def records(key: str, videos: list[int]) -> list[dict[str, Any]]:
        return [{"key": key, "video": video} for video in videos]

    found = complete_records(
        [
            *records("CAS+LSP @ 0.25", [0, 1, 1]),
            *records("EVS @ 0.25", [0]),
            *records("CAS+LSP @ 0.5", [1, 0]),
            *records("full attention @ 1", [0, 1]),
        ]
    )
    assert list(found) == ["full attention @ 1", "CAS+LSP @ 0.5", "CAS+LSP @ 0.25"]
    assert all(len(rows) == 2 for rows in found.values())
