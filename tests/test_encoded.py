"""A video with missing frames is scanned as if those frames had never been in the prompt."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from segmo.runtime.encoded import (
    VideoRows,
    encoded_tokens,
    find_encoded_scenes,
    place_rows,
    scan_encoded,
)
from segmo.runtime.features import scan_video
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.novelty import scene_novelty
from segmo.runtime.scenes import find_scenes


@st.composite
def gappy(draw: st.DrawFn) -> tuple[list[bool], int, int, int]:
    """Which frames are there (at least one), cells of a frame, text in front of each frame, a seed."""
    there = draw(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
    return there, draw(st.integers(1, 4)), draw(st.integers(0, 2)), draw(st.integers(0, 2**16))


def _row(frames: list[int], cells: int, text: int) -> tuple[torch.Tensor, torch.Tensor]:
    frame, cell = [SINK, SINK], [-1, -1]
    for place, number in enumerate(frames):
        stamps = text if place else 0  # in front of the first video token stands the sink
        frame += [number] * (stamps + cells)
        cell += [-1] * stamps + list(range(cells))
    return torch.tensor([[*frame, QUERY]]), torch.tensor([[*cell, -1]])


@given(gappy())
def test_missing_frames_change_nothing_for_the_others(case: tuple[list[bool], int, int, int]) -> None:
    there, cells, text, seed = case
    frame, cell = _row(list(range(len(there))), cells, text)
    embeds = torch.randn(1, frame.shape[1], 8, generator=torch.Generator().manual_seed(seed)) + 0.1
    inside = (cell >= 0) & ~torch.tensor(there)[frame.clamp(min=0)]
    embeds[inside] = 0
    encoded = encoded_tokens(embeds, cell)
    assert torch.equal(encoded, ~inside)
    found = scan_encoded(scan_video, embeds, frame, cell, encoded)
    scene = find_encoded_scenes(find_scenes, found[1], frame, cell, encoded, 8)

    left = encoded[0] & ((cell[0] >= 0) | (frame[0] < 0))  # without timestamps, which have no features
    alone_frame, alone_cell = _row(list(range(sum(there))), cells, 0)
    alone = scan_video(embeds[:, left], alone_frame, alone_cell)
    for mine, theirs in zip(found[:2], alone[:2], strict=True):
        torch.testing.assert_close(mine[:, left], theirs)
    torch.testing.assert_close(found[2], alone[2])
    assert found[0][inside].eq(0).all()
    assert found[1][inside].eq(1).all()
    assert torch.equal(scene[:, left], find_scenes(alone[1], alone_frame, alone_cell, 8))
    novelty = scene_novelty(embeds, found[0], frame, cell, scene, encoded)
    expected = scene_novelty(embeds[:, left], alone[0], alone_frame, alone_cell, scene[:, left])
    torch.testing.assert_close(novelty[:, left], expected)
    assert novelty[inside].eq(0).all()
    body = scene[0][frame[0] >= 0]
    assert body.diff().ge(0).all()  # a missing frame joins a neighbour, and order stays


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4), st.integers(0, 1), st.data())
def test_rows_of_frames_are_theirs(videos: list[tuple[int, int]], trailing: int, data: st.DataObject) -> None:
    rows = VideoRows(tuple(f for f, _ in videos), tuple(r for _, r in videos), trailing)
    kept = [torch.tensor(sorted(data.draw(st.sets(st.integers(0, f - 1)))), dtype=torch.long) for f in rows.frames]
    owner, first, wanted = rows.owner(), 0, {-1}
    for frames, part in zip(rows.frames, kept, strict=True):
        wanted |= {first + frame for frame in part.tolist()}
        first += frames
    assert rows.total == len(owner)
    assert rows.of(kept).tolist() == [row for row, frame in enumerate(owner.tolist()) if frame in wanted]


def test_rows_are_placed_among_zeros() -> None:
    placed = place_rows(torch.ones(2, 3), torch.tensor([0, 3]), 5)
    assert placed.sum(1).tolist() == [3, 0, 0, 3, 0]
