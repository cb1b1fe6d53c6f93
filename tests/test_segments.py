"""Segments of frames, and context tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segmo.runtime.segments import context_tokens, partition_frames, segment_ids

FRAMES = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 20)), min_size=1, max_size=14).map(
    lambda frames: ([scene for scene, _ in sorted(frames)], [tokens for _, tokens in frames])
)
COUNTS = st.integers(1, 20)


def sizes(segments: list[int], tokens: list[int]) -> list[int]:
    out = [0] * (segments[-1] + 1)
    for segment, size in zip(segments, tokens, strict=True):
        out[segment] += size
    return out


@given(frames=FRAMES, mode=st.one_of(st.just("scene"), COUNTS.map(str), COUNTS.map(lambda n: f"equal:{n}")))
def test_segments_are_runs_of_frames_numbered_from_zero(frames: tuple[list[int], list[int]], mode: str) -> None:
    segments = partition_frames(*frames, mode)
    assert len(segments) == len(frames[0])
    assert segments[0] == 0
    assert all(after - before in (0, 1) for before, after in pairwise(segments))


@given(frames=FRAMES)
def test_a_segment_for_each_scene(frames: tuple[list[int], list[int]]) -> None:
    scenes, tokens = frames
    segments = partition_frames(scenes, tokens, "scene")
    assert [a == b for a, b in pairwise(segments)] == [a == b for a, b in pairwise(scenes)]


@given(frames=FRAMES, count=COUNTS, equal=st.booleans())
def test_a_number_of_segments_is_exact_up_to_the_frames(
    frames: tuple[list[int], list[int]], count: int, equal: bool
) -> None:
    segments = partition_frames(*frames, f"equal:{count}" if equal else str(count))
    assert segments[-1] + 1 == min(count, len(frames[0]))


@given(frames=FRAMES, count=COUNTS)
def test_scenes_are_grouped_or_split_never_both(frames: tuple[list[int], list[int]], count: int) -> None:
    scenes, tokens = frames
    by_number = partition_frames(scenes, tokens, str(count))
    cuts = {i for i, (a, b) in enumerate(pairwise(by_number)) if a != b}
    scene_cuts = {i for i, (a, b) in enumerate(pairwise(scenes)) if a != b}
    assert cuts <= scene_cuts or scene_cuts <= cuts


@given(tokens=st.lists(st.integers(1, 20), min_size=1, max_size=14), count=COUNTS)
def test_equal_segments_are_off_by_less_than_the_frames_at_their_ends(tokens: list[int], count: int) -> None:
    count = min(count, len(tokens))
    share = sum(tokens) / count
    if max(tokens) > share:
        return  # then one frame alone may be more than a share
    segments = partition_frames([0] * len(tokens), tokens, f"equal:{count}")
    assert all(abs(size - share) <= max(tokens) for size in sizes(segments, tokens))


def test_merging_takes_the_smallest_neighbours_and_splitting_the_largest_scene() -> None:
    scenes, tokens = [0, 1, 2, 2, 2, 2, 3], [9, 1, 5, 5, 5, 5, 2]
    assert partition_frames(scenes, tokens, "3") == [0, 0, 1, 1, 1, 1, 2]
    assert partition_frames(scenes, tokens, "5") == [0, 1, 2, 2, 3, 3, 4]


def test_a_split_falls_at_the_middle_token() -> None:
    assert partition_frames([0] * 4, [1, 1, 1, 9], "2") == [0, 0, 0, 1]
    assert partition_frames([0] * 3, [4, 4, 4], "2") == [0, 1, 1]  # of two equally good cuts the earlier


def test_ids_of_tokens_keep_sinks_and_query_and_close_up_lost_scenes() -> None:
    frame_BK = torch.tensor([[-1, 0, 0, 4, 7, 7, -2, -2], [-1, -1, 2, 2, 3, 3, 4, -2]])
    scene_BK = torch.tensor([[-1, 0, 0, 2, 5, 5, -2, -2], [-1, -1, 0, 0, 0, 0, 1, -2]])
    assert segment_ids(frame_BK, scene_BK, "scene").tolist() == [
        [-1, 0, 0, 1, 2, 2, -2, -2],
        [-1, -1, 0, 0, 0, 0, 1, -2],
    ]
    assert segment_ids(frame_BK, scene_BK, "100").tolist() == [
        [-1, 0, 0, 1, 2, 2, -2, -2],
        [-1, -1, 0, 0, 1, 1, 2, -2],
    ]


def test_a_prompt_without_video_has_no_segments_and_no_context() -> None:
    text = torch.full((1, 4), -2)
    assert torch.equal(segment_ids(text, text, "scene"), text)
    assert not context_tokens(text, text, text, torch.zeros(1, 3), 2, 1).any()


@st.composite
def kept_tokens(draw: st.DrawFn) -> tuple[list[int], list[int], list[float]]:
    """Frame and scene of kept tokens (some scenes and frames lost), and the relevance of six scenes."""
    frame, scene, number = [], [], 0
    for index in range(6):
        for _ in range(draw(st.integers(0, 3))):
            kept = draw(st.integers(1, 3))
            frame, scene, number = frame + [number] * kept, scene + [index] * kept, number + 1
    relevance = [float(value) for value in draw(st.lists(st.integers(0, 3), min_size=6, max_size=6))]
    sinks, query = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    return [-1] * sinks + frame + [-2] * query, [-1] * sinks + scene + [-2] * query, relevance


@given(tokens=kept_tokens(), scenes=st.integers(0, 8))
def test_context_is_the_head_frame_of_the_most_relevant_scenes(
    tokens: tuple[list[int], list[int], list[float]], scenes: int
) -> None:
    frame, scene, relevance = tokens
    present = sorted({index for index in scene if index >= 0}, key=lambda index: (-relevance[index], index))
    heads = {min(f for f, s in zip(frame, scene, strict=True) if s == best) for best in present[:scenes]}
    frame_BK, scene_BK = torch.tensor([frame]), torch.tensor([scene])
    context_BK = context_tokens(frame_BK, scene_BK, scene_BK, torch.tensor([relevance]), scenes, 0)
    assert context_BK.tolist() == [[f in heads for f in frame]]


@given(tokens=kept_tokens(), tails=st.integers(0, 4), mode=st.sampled_from(["scene", "2", "equal:3"]))
def test_context_is_the_last_frames_of_every_segment_but_the_last(
    tokens: tuple[list[int], list[int], list[float]], tails: int, mode: str
) -> None:
    frame_BK, scene_BK = torch.tensor([tokens[0]]), torch.tensor([tokens[1]])
    segment_BK = segment_ids(frame_BK, scene_BK, mode)
    frames: dict[int, list[int]] = {}
    for frame, segment in zip(tokens[0], segment_BK[0].tolist(), strict=True):
        if segment >= 0 and frame not in frames.setdefault(segment, []):
            frames[segment].append(frame)
    last = {frame for segment in list(frames)[:-1] for frame in frames[segment][max(0, len(frames[segment]) - tails) :]}
    context_BK = context_tokens(frame_BK, scene_BK, segment_BK, None, 0, tails)
    assert context_BK.tolist() == [[frame in last for frame in tokens[0]]]


@pytest.mark.parametrize("mode", ["scene", "2", "equal:2", "9"])
def test_one_frame_is_one_segment(mode: str) -> None:
    assert partition_frames([0], [7], mode) == [0]
