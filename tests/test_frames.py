"""Which frames are kept: the budget is exact in all cases, and the frames are those that the rule names."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segmo.errors import PromptError
from segmo.runtime.frame_budget import (
    choose_frames,
    frame_budgets,
    frame_count,
    frame_scenes,
    frame_share,
    representative,
    scene_means,
    spread_frames,
)

scenes = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1e3)), min_size=1, max_size=30)


@given(scenes, st.integers(1, 400))
def test_the_budget_is_exact_and_never_more_than_a_scene_has(scenes: list[tuple[int, float]], total: int) -> None:
    size, share = [n for n, _ in scenes], [weight for _, weight in scenes]
    budget = frame_budgets(share, size, total)
    assert sum(budget) == min(total, sum(size))
    assert all(0 <= m <= n for m, n in zip(budget, size, strict=True))
    if total >= len(size):  # enough for all: no scene goes without
        assert min(budget) >= 1
    else:  # more scenes than frames: one each for the largest shares
        taken = [weight for weight, m in zip(share, budget, strict=True) if m]
        left = [weight for weight, m in zip(share, budget, strict=True) if not m]
        assert max(budget) == 1
        assert min(taken) >= max(left)


@given(scenes, st.integers(1, 400))
def test_a_larger_share_of_an_equally_long_scene_never_gets_less(scenes: list[tuple[int, float]], total: int) -> None:
    share = [weight for _, weight in scenes]
    budget = frame_budgets(share, [20] * len(share), total)
    for (low, few), (_, many) in pairwise(sorted(zip(share, budget, strict=True), key=lambda pair: pair[0])):
        assert few <= many + 1, low


def test_the_three_cases_by_hand() -> None:
    assert frame_budgets([0.2, 0.5, 0.3], [4, 4, 4], 2) == [0, 1, 1]
    assert frame_budgets([0.2, 0.5, 0.3], [2, 1, 2], 9) == [2, 1, 2]
    assert frame_budgets([0.2, 0.5, 0.3], [9, 9, 9], 8) == [2, 4, 2]


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_share_that_stands_for_a_number_of_frames_is_that_number(frames: int, wanted: int) -> None:
    wanted = min(frames, wanted)
    assert frame_count(frames, wanted / frames) == wanted
    share = frame_share(wanted, frames)
    assert frame_count(frames, share) == wanted
    assert all(int(share * frames * cells) == wanted * cells for cells in (1, 4, 6, 196, 1001))


@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**16))
def test_frames_are_chosen_exactly_and_the_same_every_time(
    frames: int, share: float, length: int, balance: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randn(frames, 6, generator=generator)[torch.arange(frames) // length * length]
    scene = frame_scenes(looks)
    relevance = torch.randn(int(scene[-1]) + 1, generator=generator)
    total = frame_count(frames, share)
    kept = choose_frames(looks, scene, relevance, total, balance)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == total
    assert kept.tolist() == choose_frames(looks, scene, relevance, total, balance).tolist()
    if total >= len(relevance):
        assert set(scene[kept].tolist()) == set(range(len(relevance)))


def test_scenes_start_where_the_picture_changes() -> None:
    looks = torch.tensor([0.0, 0.0, 0.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0])[:, None].expand(-1, 4)
    assert frame_scenes(looks).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_relevance_draws_frames_to_its_scene() -> None:
    looks = torch.tensor([0.0] * 8 + [5.0] * 8 + [1.0] * 8)[:, None] + torch.arange(24)[:, None] * 1e-4
    scene = torch.arange(24) // 8
    kept = choose_frames(looks, scene, torch.tensor([0.0, 9.0, 0.0]), 9, balance=1.0)
    assert torch.bincount(scene[kept]).tolist() == [2, 6, 1]


def test_a_flash_in_a_still_scene_is_the_second_frame_taken() -> None:
    looks = torch.zeros(9, 3)
    looks[5] = 1
    assert sorted(spread_frames(looks, 2, 2)) == [2, 5]
    assert representative(looks, torch.zeros(9, dtype=torch.long)).tolist() == [0]


def test_scores_of_frames_are_averaged_over_scenes() -> None:
    means = scene_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    assert means.tolist() == [2.0, 5.0]


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(PromptError, match="scene 1 is NaN"):
        choose_frames(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), torch.tensor([0.0, torch.nan]), 2)
