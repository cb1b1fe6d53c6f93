"""Scenes are found where they were planted, and never span videos."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Prompt, prompts
from torch import Tensor

from segmo.runtime.features import scan_video
from segmo.runtime.layout import video_layout
from segmo.runtime.scenes import MAX_SCENES, find_scenes, head_frames, scene_starts

HIDDEN, CELLS = 64, 3


def first(frames: int) -> Tensor:
    """One video of so many frames."""
    return torch.arange(frames) == 0


def planted(lengths: list[int], seed: int, noise: float, drift: float) -> tuple[Tensor, Tensor]:
    """Embeddings (1, N, HIDDEN) and video mask of shots that drift, with noise, and share nothing."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shots = []
    for length in lengths:
        look, direction = randn(1, CELLS, HIDDEN), randn(1, CELLS, HIDDEN)
        steps = torch.arange(length)[:, None, None] * drift
        shots.append(look + steps * direction + noise * randn(length, CELLS, HIDDEN))
    video = torch.cat(shots).flatten(0, 1)
    text = randn(2, HIDDEN)
    embeds = torch.cat([text, video, text])[None]
    flags = torch.tensor([[False] * 2 + [True] * len(video) + [False] * 2])
    return embeds, flags


@given(
    lengths=st.lists(st.integers(4, 9), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    drift=st.sampled_from([0.0, 0.05]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_planted_cuts_are_found_and_no_others(lengths: list[int], seed: int, drift: float, dtype: torch.dtype) -> None:
    embeds_BNH, video_BN = planted(lengths, seed, noise=0.05, drift=drift)
    frame_BN, cell_BN = video_layout(video_BN, None, CELLS, 0)
    _, similarity_BN, _ = scan_video(embeds_BNH.to(dtype), frame_BN, cell_BN)
    scene_BN = find_scenes(similarity_BN, frame_BN, cell_BN, MAX_SCENES)
    expected = [scene for scene, length in enumerate(lengths) for _ in range(length * CELLS)]
    assert scene_BN.tolist() == [[-1, -1, *expected, -2, -2]]


@given(
    distance=st.lists(st.floats(0, 2, width=32), min_size=1, max_size=30),
    extra=st.sets(st.integers(1, 29), max_size=4),
    limit=st.integers(1, 12),
)
def test_starts_are_ascending_bounded_and_hold_every_first_frame(
    distance: list[float], extra: set[int], limit: int
) -> None:
    first_F = first(len(distance))
    first_F[[frame for frame in extra if frame < len(distance)]] = True
    starts = scene_starts(torch.tensor(distance), first_F, limit)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert len(starts) <= limit
    videos = first_F.nonzero()[:, 0].tolist()
    assert set(videos[:limit]) <= set(starts)


def test_the_sharpest_cuts_are_kept_ties_by_order() -> None:
    distance = torch.full((24,), 0.02)
    distance[[4, 8, 12, 16, 20]] = torch.tensor([0.3, 0.9, 0.3, 0.5, 0.3])
    assert scene_starts(distance, first(24), 128) == [0, 4, 8, 12, 16, 20]
    assert scene_starts(distance, first(24), 5) == [0, 4, 8, 12, 16]
    assert scene_starts(distance, first(24), 3) == [0, 8, 16]
    assert scene_starts(distance, first(24), 1) == [0]


@pytest.mark.parametrize("level", [0.0, 0.004, 0.5])
def test_even_motion_is_one_scene(level: float) -> None:
    assert scene_starts(torch.full((20,), level), first(20), 128) == [0]


def test_two_cuts_side_by_side_are_both_found() -> None:
    distance = torch.full((12,), 0.01)
    distance[5:7] = 0.8
    assert scene_starts(distance, first(12), 128) == [0, 5, 6]


def test_a_quick_row_of_cuts_is_found_though_none_stands_out() -> None:
    distance = torch.full((20,), 0.001)
    distance[3] = 0.9
    distance[8:14] = torch.tensor([0.7, 0.6, 0.8, 0.5, 0.9, 0.6])
    assert scene_starts(distance, first(20), 128) == [0, 3, 8, 9, 10, 11, 12, 13]


def test_what_moves_inside_a_scene_is_no_cut_beside_real_ones() -> None:
    distance = torch.full((20,), 0.001)
    distance[[5, 12]] = torch.tensor([0.8, 0.05])
    assert scene_starts(distance, first(20), 128) == [0, 5]
    distance[5] = 0.001
    assert scene_starts(distance, first(20), 128) == [0, 12]


def test_one_frame_is_one_scene() -> None:
    assert scene_starts(torch.zeros(1), first(1), 128) == [0]


@given(prompt=prompts(max_videos=3), limit=st.sampled_from([128, 3]))
def test_no_scene_spans_videos(prompt: Prompt, limit: int) -> None:
    """All features are the same, so there is no cut but between the videos."""
    frames, cells, videos = prompt.expected
    frame_BN, cell_BN = torch.tensor([frames]), torch.tensor([cells])
    embeds_BNH = torch.ones(1, len(frames), 4)
    novelty_BN, similarity_BN, _ = scan_video(embeds_BNH, frame_BN, cell_BN)
    scene = find_scenes(similarity_BN, frame_BN, cell_BN, limit)[0].tolist()
    assert [s for s, v in zip(scene, videos, strict=True) if v >= 0] == [v for v in videos if v >= 0]
    for token, (frame, video) in enumerate(zip(frames, videos, strict=True)):
        if video >= 0:
            earlier = frame - 1 in [f for f, v in zip(frames, videos, strict=True) if v == video]
            if earlier:
                assert novelty_BN[0, token] == pytest.approx(0, abs=1e-6)
            else:
                assert novelty_BN[0, token] == 1


def test_text_between_frames_joins_the_scene_of_its_frame() -> None:
    frame_BN = torch.tensor([[-1, 0, 0, 1, 1, 2, 2, 3, 3, -2]])
    cell_BN = torch.tensor([[-1, -1, 0, -1, 0, -1, 0, -1, 0, -1]])
    similarity_BN = torch.tensor([[1, 1, 1, 1, 1, 1, 0.1, 1, 1, 1]])
    assert find_scenes(similarity_BN, frame_BN, cell_BN, 8).tolist() == [[-1, 0, 0, 0, 0, 1, 1, 1, 1, -2]]


def test_head_frames_of_scenes_that_lost_tokens() -> None:
    frame, scene = torch.tensor([1, 1, 2, 6, 7]), torch.tensor([0, 0, 0, 3, 3])
    assert head_frames(frame, scene).tolist() == [1, 8, 8, 6]
