"""Frames are compared as PySceneDetect does it wherever that decides something, and seldom elsewhere."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segmo.demo.clips import clip_path
from segmo.video.compare import Changes, Comparer
from segmo.video.decode import decode
from segmo.video.glance import Glance
from segmo.video.index import build_index
from segmo.video.scenes import SceneOptions, Small, change, find_cuts


def frames_of(clip: str) -> list[Any]:
    path = clip_path(clip)
    return [frame for _, frame in decode(path, build_index(path))]


def frame(pixels: NDArray[np.uint8], form: str = "yuv420p") -> Any:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format=form)


def compared(frames: list[Any], options: SceneOptions) -> Changes:
    comparer = Comparer(options)
    for each in frames:
        comparer.add(each)
    comparer.end()
    return comparer.changes


def in_full(frames: list[Any]) -> list[float]:
    """Every frame as PySceneDetect compares it."""
    small = Small()
    pictures = [small(each) for each in frames]
    return [0.0, *[change(one, other) for one, other in pairwise(pictures)]]


def cuts(changes: list[float], options: SceneOptions) -> list[int]:
    times = [number / 25 for number in range(len(changes))]
    return [number for number, _ in find_cuts(times, changes, 25.0, options)]


@pytest.mark.parametrize("clip", ["bikes", "bigbuckbunny"])
def test_what_decides_is_compared_in_full_and_most_of_a_film_is_not(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, options = frames_of(clip), SceneOptions()
    expected = in_full(frames)
    small, shrunk = Small.__call__, []
    monkeypatch.setattr(Small, "__call__", lambda self, each: shrunk.append(each) or small(self, each))
    found = compared(frames, options).values.tolist()
    assert len(shrunk) < 0.6 * len(frames)  # bikes is all motion
    matters = {
        near
        for number, value in enumerate(expected)
        if value >= options.min_content_val
        for near in range(max(0, number - options.window_width), min(len(frames), number + options.window_width + 1))
    }
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one == other if number in matters else one < options.min_content_val


@pytest.mark.parametrize("clip", ["bikes", "bigbuckbunny"])
def test_a_quick_look_is_near_the_full_comparison(clip: str) -> None:
    """Far nearer than the half on which skipping relies."""
    frames, glance = frames_of(clip), Glance()
    grids = [glance(each) for each in frames]
    quick = np.array([change(one, other) for one, other in pairwise(grids)])  # type: ignore[arg-type]
    full = np.array(in_full(frames)[1:])
    ratio = quick[full > 5] / full[full > 5]
    assert 0.7 < ratio.min() < ratio.max() < 1.5


@settings(max_examples=40)
@given(
    steps=st.lists(st.sampled_from([0, 0, 0, 2, 30, 90, 200]), min_size=1, max_size=24),
    border=st.integers(1, 24),
    window=st.integers(1, 3),
    shape=st.sampled_from([(48, 64), (17, 333), (1, 1), (270, 480)]),
    form=st.sampled_from(["yuv420p", "yuvj420p", "yuv444p", "rgb24", "gray"]),
)
def test_cuts_are_those_of_comparing_all_frames_also_in_two_stretches(
    steps: list[int], border: int, window: int, shape: tuple[int, int], form: str
) -> None:
    options = SceneOptions(1.5, 15.0, 0, window)
    generator = np.random.default_rng(0)
    picture, frames = generator.integers(0, 256, (*shape, 3)), []
    for step in steps:  # every step moves a part of the picture
        picture = picture.copy()
        picture[: 1 + shape[0] // 2] = (picture[: 1 + shape[0] // 2] + step) % 256
        frames.append(frame(picture.astype(np.uint8), form))
    expected = cuts(in_full(frames), options)
    assert cuts(compared(frames, options).values.tolist(), options) == expected
    before, after = compared(frames[:border], options), compared(frames[border:], options)
    if before.last is not None and after.first is not None:
        after.values[0] = change(before.last, after.first)
    assert cuts([*before.values, *after.values], options) == expected


def test_a_film_that_changes_its_size_or_format_is_compared_in_full_there() -> None:
    pictures = [np.full((48, 64, 3), value, np.uint8) for value in (10, 10, 10, 10, 10, 10)]
    frames = [frame(each) for each in pictures]
    frames += [frame(each[:24, :32]) for each in pictures] + [frame(each, "rgb24") for each in pictures]
    assert compared(frames, SceneOptions()).values.tolist() == pytest.approx(in_full(frames), abs=0.5)


def test_no_frame_is_skipped_where_any_change_may_be_a_cut() -> None:
    frames = frames_of("bikes")[:20]
    assert compared(frames, SceneOptions(min_content_val=0.0)).values.tolist() == in_full(frames)
