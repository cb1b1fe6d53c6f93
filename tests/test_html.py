"""What is on the HTML page, read from its text; tests/test_browser.py opens it."""

from __future__ import annotations

import difflib
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, prompt
from pages import EVIL, FRAMES, make_report, record_of, with_markup

import segmo
from segmo.errors import OptionError
from segmo.report.html import blocks, video
from segmo.report.html.alike import fold_alike, names_of, spans
from segmo.report.html.changes import Fold, Row, _opcodes, changes, node_lines, record_changes, short
from segmo.report.html.drawing import draw, operation
from segmo.report.html.kernels import kernels
from segmo.report.html.ranks import timeline
from segmo.report.prefill import Prefill
from segmo.report.report import Report
from segmo.report.shown import Shown
from segmo.report.text import node_name
from segmo.runtime.attention.choice import Choice, Shape
from segmo.runtime.attention.reference import dense_mask
from segmo.runtime.cost.shape import PRESETS
from segmo.runtime.cost.store import planning_device
from segmo.runtime.partition.planner import make_plan
from segmo.runtime.partition.workload import Workload
from segmo.runtime.schedule import attention_schedule, unpack


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


def test_folds_hold_every_changed_node_and_no_untouched_one(report: Report) -> None:
    for record in report.graphs[0].passes:
        before, after = (node_lines(text) for text in (record.text_before, record.text_after))
        differ = {node_name(short(line)) for line in set(before) ^ set(after)} - {""}
        shown = {name for fold in record_changes(record) for name in fold.names}
        repeated = record.name in ("tile-rows", "reuse-buffers")  # with bodies, which name again what they are handed
        assert shown == differ or (repeated and shown > differ), record.name
    attention = record_changes(record_of(report, "segment-attention"))
    assert [fold.title for fold in attention][-3:] == ["layer 0", "layer 1", "layer 2"]
    assert all(fold.count("same") <= 4 * (len(fold.names) + 1) for fold in attention)
    text = report.graphs[0].passes[0].text_before
    assert changes(text, text) == ()


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


def test_layers_that_changed_alike_are_one_fold(report: Report) -> None:
    record = record_of(report, "segment-attention")
    all_folds = record_changes(record)
    folds = fold_alike(all_folds, names_of(record))
    layers = next(fold for fold in folds if fold.title.startswith("layer") and fold.likewise)
    # Before torch 2.14 transformers makes a causal mask in the graph, and it goes with the changes of layer 0.
    assert {"layer 1", "layer 2"} <= {layers.title, *layers.likewise} <= {"layer 0", "layer 1", "layer 2"}
    assert sorted(title for fold in folds for title in (fold.title, *fold.likewise)) == sorted(
        fold.title for fold in all_folds
    )
    assert spans(["layer 2", "layer 3", "layer 4", "layer 7", "inputs"]) == "layers 2 to 4, 7, inputs"
    assert spans(["layer 7"]) == "layer 7"


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        ("d_1 = torch.mul(c_1, layers.7.w)", True),
        ("d_1 = torch.mul(d_1, layers.7.w)", False),  # reads another node
        ("d_1 = torch.add(c_1, layers.7.w)", False),
        ("d_1 = torch.mul(c_1, layers.7.b)", False),
    ],
)
def test_layers_are_alike_up_to_names_only(other: str, alike: bool) -> None:
    one = Fold("layer 3", (Row("changed", "b = torch.mul(a, layers.3.w)", "b = torch.mul(a, layers.3.w)"),))
    two = Fold("layer 7", (Row("changed", "d_1 = torch.mul(c_1, layers.7.w)", other),))
    assert (len(fold_alike([one, two], {"a", "b", "c_1", "d_1"})) == 1) == alike


def test_parameters_have_the_models_names() -> None:
    line = (
        "x = linear(y, l_self_modules_model_modules_language_model_modules_layers_modules_1_modules_mlp_parameters_w_)"
    )
    assert short(line) == "x = linear(y, layers.1.mlp.w)"


def test_the_drawing_holds_the_change_and_its_neighbours(report: Report) -> None:
    record = record_of(report, "segment-attention")
    fold = next(fold for fold in record_changes(record) if fold.title == "layer 1")
    before, after = draw(record, fold)
    for drawing, op in ((before, "scaled_dot_product_attention"), (after, "segmo.segment_attention")):
        changed = [box.op for box in drawing.boxes if box.changed]
        assert changed.count(op) == 1
        assert any(not box.changed for box in drawing.boxes)
        places = [(box.x, box.y) for box in drawing.boxes]
        assert len(set(places)) == len(places)
        assert all(0 <= box.x < drawing.width and 0 <= box.y < drawing.height for box in drawing.boxes)
        assert all(below > above for _, above, _, below in drawing.edges)
    assert operation("x.view(1, 2)") == ".view"
    assert operation("torch.ops.segmo.scan_video.default(a, b)") == "segmo.scan_video"
    assert operation("a[(Ellipsis, 0)]") == "[...]"
    assert operation("a + b") == "+"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 4), st.integers(0, 4), st.data())
def test_the_block_picture_counts_the_pairs_of_the_rule(
    sizes: list[int], sinks: int, query: int, data: st.DataObject
) -> None:
    segment = torch.tensor([*[-1] * sinks, *[s for s, n in enumerate(sizes) for _ in range(n)], *[-2] * query])[None]
    context = torch.tensor([data.draw(st.lists(st.booleans(), min_size=segment.shape[1], max_size=segment.shape[1]))])
    base = torch.zeros_like(segment)
    recorded = {
        "frame": segment,
        "question": segment == -2,
        "cell": base,
        "scene": segment,
        "novelty": base.float(),
        "segment": segment,
    }
    found = blocks.picture(Prefill({**recorded, "context": context}))
    assert found is not None
    row = unpack(attention_schedule(segment, context, None))[0]
    assert found.pairs == int(dense_mask(row, segment.shape[1]).sum())
    corners = [float(x) for block in found.blocks for point in block.points.split() for x in point.split(",")]
    assert min(corners) >= 0
    assert max(corners) <= blocks.SIDE + 0.1


def test_masks_show_the_cells_that_were_kept(report: Report) -> None:
    import base64
    import io

    from PIL import Image

    prefill = report.prefill
    for frame in video.frames(prefill, prefill.scenes()):
        mask = Image.open(io.BytesIO(base64.b64decode(frame.mask.split(",")[1]))).convert("RGBA")
        assert mask.size == (2, 2)  # four cells, as the position ids lay them out
        clear = {y * 2 + x for y in range(2) for x in range(2) if mask.getpixel((x, y))[3] == 0}
        kept = {int(prefill.cell[0, at]) for at in prefill.kept() if prefill.frame[0, at] == frame.number}
        assert clear == kept
        assert frame.kept == len(kept)


def test_frames_are_checked_and_only_thumbnails_are_kept() -> None:
    with segmo.show_prompt(np.zeros((2, 360, 640, 3), np.uint8)):
        from segmo.report.shown import current_shown

        shown = current_shown()
        assert isinstance(shown, Shown)
        assert shown.frames is not None
        assert shown.frames.shape == (2, 90, 160, 3)
        assert shown.size == (640, 360)
    assert current_shown() is None
    with (
        pytest.raises(OptionError, match=r"uint8 RGB, got float32 of shape \(2, 3\)"),
        segmo.show_prompt(np.zeros((2, 3), np.float32)),
    ):
        pass


def test_the_resource_table_is_what_the_compiler_says() -> None:
    shape = Shape(torch.device("cpu"), torch.bfloat16, 64, 8, 2)
    (found,) = kernels([Choice("flash", "on the CPU", shape)] * 2, ["sm_80"])
    assert [row["kernel"] for row in found.rows] == ["segment_attention_kernel", "merge_splits_kernel"]
    assert found.rows[0]["matrix"] == ["mma.sync"]
    assert found.rows[0]["registers"] > 0
    assert found.source.target == "sm_90"
    (refused,) = kernels([Choice("reference", "", Shape(torch.device("cpu"), torch.float64, 64, 8, 2))], [])
    assert "no generated kernel for torch.float64" in refused.source.reason


def test_the_timeline_has_a_row_per_rank_and_ends_with_the_plan() -> None:
    device = planning_device("h100", torch.device("cpu"), torch.bfloat16)
    plan = make_plan(Workload(20, 40, (500, 900, 700), (0, 0, 0), 0, 1), PRESETS["qwen2.5-vl-7b"], [device] * 3)
    made = timeline(plan)
    assert [line.label.split(",")[0] for line in made.lines] == ["rank 0", "rank 1", "rank 2", "link"]
    ends = [bar.start + bar.width for line in made.lines for bar in line.bars]
    assert max(ends) == pytest.approx(100, abs=0.01)
    assert any(bar.critical for line in made.lines for bar in line.bars)
