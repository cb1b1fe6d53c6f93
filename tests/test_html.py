"""What is on the HTML page, read from its text; tests/test_browser.py opens it."""

from __future__ import annotations

import difflib
import re
from html import escape
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, prompt
from pages import EVIL, FRAMES, make_report, with_markup

import segmo
from segmo.html.changes import _opcodes
from segmo.report import Report


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


def test_the_page_holds_each_part(report: Report) -> None:
    page = report.to_html()
    for part in (
        "Notices",
        "Pipeline",
        "Graph changes",
        "Video",
        "Which segment sees what",
        "Kernels",
        "Plan per rank",
    ):
        assert f">{part}</h2>" in page
    assert "Nothing was lost" in page
    assert page.count('class="mask"') == FRAMES == page.count('alt="frame ')
    assert page.count('class="scene"') == len(report.prefill.scenes())
    assert "segment_attention_kernel" in page  # the source of the kernel that a GPU would get


def test_nothing_on_the_page_points_anywhere(report: Report) -> None:
    page = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", report.to_html())
    assert not re.findall(r"https?://|url\(|@import|<link(?! rel=\"icon\" href=\"data:,\")|<iframe|srcset", page)
    assert set(re.findall(r'(?:src|href)="([^"#]*)', page)) == {"data:,", ""}


def test_markup_in_every_string_is_text(report: Report) -> None:
    page = with_markup(report).to_html()
    assert EVIL not in page
    assert "<img data-evil" not in page
    assert page.count("</script>") == 1
    shown = [escape(text, quote=False) for text in ("what? <img data-evil", "reason <img", "remedy <img", "note <img")]
    for text in shown:
        assert text in page


def test_a_report_folder_gets_the_page_beside_the_json(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = build("qwen2_vl")
    segmo.compile(model, keep=0.5, report=tmp_path)
    model.generate(**prompt("qwen2_vl"), max_new_tokens=1, do_sample=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["segmo-report.html", "segmo-report.json"]
    page = (tmp_path / "segmo-report.html").read_text()
    assert "blue cells: kept" in page  # no frames were handed in
    assert 'class="mask"' in page


@given(st.data())
def test_runs_are_those_of_difflib_where_lines_are_unique_and_keep_their_order(data: st.DataObject) -> None:
    before = data.draw(st.lists(st.integers(0, 40).map(str), unique=True, max_size=14))
    after = [line for line in before if data.draw(st.booleans())]
    for number in range(data.draw(st.integers(0, 4))):
        after.insert(data.draw(st.integers(0, len(after))), f"new {number}")
    expected = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    assert list(_opcodes(before, after)) == [("equal" if tag == "equal" else "replace", *at) for tag, *at in expected]


@given(*[st.lists(st.sampled_from("abcdef"), max_size=10)] * 2)
def test_runs_cover_both_sides_whatever_the_lines(before: list[str], after: list[str]) -> None:
    a = c = 0
    for tag, *at in _opcodes(before, after):
        assert (at[0], at[2]) == (a, c)
        assert tag == "replace" or before[at[0] : at[1]] == after[at[2] : at[3]]
        a, c = at[1], at[3]
    assert (a, c) == (len(before), len(after))
