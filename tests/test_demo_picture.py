"""The demo's picture: which frames it shows, what is dimmed, and that the drawn pixels say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from segmo.demo.panels import draw_budgets, draw_relevance, draw_timeline
from segmo.demo.picture import WIDTH_PIXELS, draw_kept, save_picture
from segmo.demo.strip import COLUMNS, dim_dropped, kept_outline, strip_height
from segmo.demo.style import clock
from segmo.report.storyboard import choose_frames


def make_scenes(lengths: list[int], cells: int = 12) -> list[dict[str, Any]]:
    """Entries as a report has them; a scene keeps a third of its tokens."""
    scenes, start = [], 0
    for number, length in enumerate(lengths):
        tokens = length * cells
        scenes.append(
            {
                "start_frame": start,
                "end_frame": start + length,
                "tokens": tokens,
                "kept": tokens // 3,
                "relevance": number / 7 - 0.2,
            }
        )
        start += length
    return scenes


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(lengths=LENGTHS, count=st.integers(1, 30))
def test_chosen_frames_stand_for_the_scenes(lengths: list[int], count: int) -> None:
    scenes = make_scenes(lengths)
    chosen = choose_frames(scenes, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, sum(lengths))
    assert 0 <= chosen[0] <= chosen[-1] < sum(lengths)
    if count >= len(scenes):
        assert {scene["start_frame"] for scene in scenes} <= set(chosen)


def test_long_scenes_show_more_frames() -> None:
    assert choose_frames(make_scenes([30, 10]), 4) == [0, 10, 20, 30]


def test_dropped_cells_are_dark_and_kept_ones_as_they_were() -> None:
    frame = np.random.default_rng(0).integers(60, 256, (8, 12, 3), dtype=np.uint8)
    kept = np.array([[True, False, False], [False, True, True]])
    dimmed = dim_dropped(frame, kept)
    for row in range(2):
        for column in range(3):
            cell = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            if kept[row, column]:
                assert (dimmed[cell] == frame[cell]).all()
            else:
                assert dimmed[cell].mean() < 0.5 * frame[cell].mean()
                assert (np.ptp(dimmed[cell], axis=-1) == 0).all()  # grey


@given(cells=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_outline_has_a_side_for_each_change(cells: list[list[bool]]) -> None:
    kept = np.array(cells)
    changes = [
        (a, b)
        for a in np.ndindex(kept.shape)
        for b in ((a[0] + 1, a[1]), (a[0], a[1] + 1))
        if b[0] < kept.shape[0] and b[1] < kept.shape[1] and kept[a] != kept[b]
    ]
    outline = kept_outline(kept)
    assert len(outline) == len(set(outline)) == len(changes)
    for (x0, y0), (x1, y1) in outline:
        assert abs(x1 - x0) + abs(y1 - y0) == 1


def test_strip_height_counts_rows() -> None:
    one, two = strip_height(COLUMNS, 10, 0.5), strip_height(COLUMNS + 1, 10, 0.5)
    assert one == pytest.approx(10 / COLUMNS * 0.5, rel=0.05)
    assert two > 2 * one


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (125, "2:05"), (3600, "60:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("lengths", [[1], [4, 9, 2], [1] * 25, [2] * 60], ids=len)
def test_the_picture_is_drawn_for_any_number_of_scenes(lengths: list[int], tmp_path: Path) -> None:
    total = sum(lengths)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (total, 24, 48, 3), dtype=np.uint8)
    kept = generator.random((total, 3, 4)) < 0.3
    figure = draw_kept(
        frames, make_scenes(lengths), kept, seconds_per_frame=2.0, cuts=[4.0][: total - 1], caption="any"
    )
    path = save_picture(figure, tmp_path / "new" / "kept.png")
    with Image.open(path) as picture:
        assert picture.width == WIDTH_PIXELS
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 10
    title = figure.texts[0].get_text()
    assert title.startswith(f"{int(kept.sum()):,} of {kept.size:,} video tokens kept")
    assert f"{len(lengths)} scenes found" in title


def test_the_picture_shows_kept_cells_in_colour_and_dropped_ones_dark(tmp_path: Path) -> None:
    """One white frame of which the left half is kept: white and dark areas of equal size in the strip."""
    kept = np.zeros((1, 2, 4), dtype=bool)
    kept[:, :, :2] = True
    white = np.full((1, 40, 80, 3), 255, np.uint8)
    figure = draw_kept(white, make_scenes([1], 8), kept, seconds_per_frame=1.0)
    frame_axes = figure.axes[0]
    drawn = frame_axes.images[0].get_array()
    assert (drawn[:, :40] == 255).all()
    assert (drawn[:, 40:] < 100).all()


def test_panels_draw_the_numbers() -> None:
    scenes = make_scenes([3, 6, 1])
    figure = Figure()
    timeline, budgets, relevance = figure.subplots(3)
    share = np.linspace(0, 1, 10)
    draw_timeline(timeline, scenes, share, 2.0, [6.0])
    assert [bar.get_height() for bar in timeline.containers[1]] == pytest.approx(share.tolist())
    assert timeline.get_xlim() == (0, 20)
    draw_budgets(budgets, scenes)
    assert [bar.get_height() for bar in budgets.containers[1]] == [scene["kept"] for scene in scenes]
    assert [text.get_text() for text in budgets.texts] == ["12 / 36", "24 / 72", "4 / 12"]
    draw_relevance(relevance, scenes)
    low, high = relevance.get_ylim()
    assert all(low < scene["relevance"] < high for scene in scenes)


def test_relevance_that_is_the_same_everywhere_is_drawn() -> None:
    scenes = [scene | {"relevance": 0.0} for scene in make_scenes([2, 2])]
    axes = Figure().subplots()
    draw_relevance(axes, scenes)
    low, high = axes.get_ylim()
    assert low < 0 < high
