"""Budgets are exact; the choice keeps all text and the least redundant video tokens of each scene."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Prompt, prompts
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import scan_video
from segmo.runtime.novelty import scene_novelty
from segmo.runtime.scenes import find_scenes
from segmo.runtime.selection import FRESH, kept_count, scene_budgets, scene_shares, select_tokens

SHARES = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.integers(0, 5).map(float))
Budget = tuple[list[float], list[int], int, list[int]]  # share, size, total, least
SCENES = st.lists(st.tuples(SHARES, st.integers(0, 40)), min_size=1, max_size=12)
KEEP = st.one_of(st.sampled_from([0.25, 0.5, 1.0]), st.floats(1e-3, 1))


@st.composite
def budget_inputs(draw: st.DrawFn) -> Budget:
    share, size = map(list, zip(*draw(SCENES), strict=True))
    least = [draw(st.integers(0, min(have, 3))) for have in size]
    return share, size, draw(st.integers(sum(least), sum(size))), least


@given(inputs=budget_inputs())
def test_budgets_are_exact_bounded_and_above_the_floor(inputs: Budget) -> None:
    _, size, total, least = inputs
    budget = scene_budgets(*inputs)
    assert sum(budget) == total
    assert all(need <= got <= have for need, got, have in zip(least, budget, size, strict=True))
    assert scene_budgets(*inputs) == budget


@given(inputs=budget_inputs())
def test_budgets_above_the_floor_are_proportional_to_within_one_token(
    inputs: Budget,
) -> None:
    """Some number of tokens per unit of share explains every scene that is not full, to within one token."""
    share, size, _, least = inputs
    budget = scene_budgets(*inputs)
    open_scenes = [s for s in range(len(size)) if budget[s] < size[s] and share[s] > 0]
    low = max(((budget[s] - least[s] - 1) / share[s] for s in open_scenes), default=0.0)
    high = min(((budget[s] - least[s] + 1) / share[s] for s in open_scenes), default=0.0)
    assert low <= high * (1 + 1e-9)
    for scene in range(len(size)):  # a full scene deserved at least what it has
        if budget[scene] == size[scene] and budget[scene] > least[scene] and open_scenes:
            assert (budget[scene] - least[scene] - 1) <= high * share[scene] * (1 + 1e-9)


@given(scenes=st.integers(1, 9), size=st.integers(1, 9), data=st.data())
def test_ties_go_to_the_earlier_scene(scenes: int, size: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(0, scenes * size))
    budget = scene_budgets([1.0] * scenes, [size] * scenes, total, [0] * scenes)
    each, more = divmod(total, scenes)
    assert budget == [each + 1] * more + [each] * (scenes - more)


def test_largest_remainders_get_the_tokens_that_are_left() -> None:
    assert scene_budgets([0.55, 0.25, 0.2], [99, 99, 99], 5, [0, 0, 0]) == [3, 1, 1]  # 2.75, 1.25, 1
    assert scene_budgets([3, 3, 4], [99, 99, 99], 13, [1, 1, 1]) == [4, 4, 5]
    assert scene_budgets([8, 1, 1], [4, 50, 50], 14, [1, 1, 1]) == [4, 5, 5]  # what a full scene cannot take
    assert scene_budgets([0, 0], [30, 10], 22, [1, 1]) == [16, 6]  # without shares: by what they have


@given(
    relevance=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8),
    scale=st.sampled_from([1e-3, 1.0, 64.0]),
    offset=st.sampled_from([-8.0, 0.0, 512.0]),
    balance=st.floats(0, 1),
)
def test_shares_sum_to_one_and_forget_scale_and_offset(
    relevance: list[float], scale: float, offset: float, balance: float
) -> None:
    relevance_S = torch.tensor(relevance, dtype=torch.double)
    assume(len(relevance) == 1 or float(relevance_S.std()) > 1e-2)
    dynamics_S = torch.arange(1.0, len(relevance) + 1)
    share_S = scene_shares(relevance_S, dynamics_S, balance)
    assert share_S.sum() == pytest.approx(1)
    assert (share_S >= 0).all()
    moved = scene_shares(relevance_S * scale + offset, dynamics_S * scale, balance)
    torch.testing.assert_close(moved, share_S, rtol=1e-6, atol=1e-9)


def test_balance_weighs_relevance_against_dynamics() -> None:
    relevance_S, dynamics_S = torch.tensor([0.0, 1.0]), torch.tensor([3.0, 1.0])
    assert scene_shares(relevance_S, dynamics_S, 0).tolist() == pytest.approx([0.75, 0.25])
    first, second = scene_shares(relevance_S, dynamics_S, 1).tolist()
    assert second > first
    assert scene_shares(torch.ones(4), torch.zeros(4), 1).tolist() == pytest.approx([0.25] * 4)


@given(scenes=st.integers(2, 12), level=st.sampled_from([-3.0, 0.0, 0.4, 800.0]), seed=st.integers(0, 99))
def test_a_question_without_a_relevant_scene_falls_back_to_coverage(scenes: int, level: float, seed: int) -> None:
    """Rounding in the relevance of scenes that are all alike has no say: shares are those of equal relevance."""
    generator = torch.Generator().manual_seed(seed)
    noise_S = torch.randn(scenes, generator=generator) * 4 * torch.finfo(torch.float32).eps
    dynamics_S = 1 + torch.rand(scenes, generator=generator)
    share_S = scene_shares(level * (1 + noise_S), dynamics_S, 0.5)
    expected_S = 0.5 / scenes + 0.5 * dynamics_S.double() / dynamics_S.double().sum()
    torch.testing.assert_close(share_S, expected_S, rtol=1e-6, atol=0)
    told_S = scene_shares(torch.arange(scenes).float(), dynamics_S, 0.5)
    assert float(told_S[-1]) > float(expected_S[-1])  # and where one is more relevant, it is heard


@given(length=st.integers(0, 50), video=st.integers(0, 500), batch=st.integers(1, 4), keep=KEEP)
def test_kept_count_is_the_floor_of_the_contract(length: int, video: int, batch: int, keep: float) -> None:
    kept = kept_count(length + video, video * batch, batch, keep)
    assert kept == length + math.floor(keep * video)
    assert kept_count(length + video, video * batch, batch, 1.0) == length + video


def choose(prompt: Prompt, keep: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kept positions (K,), novelty (N,) and scene (N,) of a prompt with random, often tied, features."""
    frames, cells, _ = prompt.expected
    frame_BN, cell_BN = torch.tensor([frames]), torch.tensor([cells])
    generator = torch.Generator().manual_seed(seed)
    embeds_BNH = torch.randint(-1, 2, (1, len(frames), 3), generator=generator).float() + 0.25
    novelty_BN, similarity_BN, _ = scan_video(embeds_BNH, frame_BN, cell_BN)
    scene_BN = find_scenes(similarity_BN, frame_BN, cell_BN, 4)
    novelty_BN = scene_novelty(embeds_BNH, novelty_BN, frame_BN, cell_BN, scene_BN)
    relevance_BS = torch.randn(1, 4, generator=generator)
    kept = kept_count(len(frames), int((cell_BN >= 0).sum()), 1, keep)
    inputs = (novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, kept, 0.5)
    index_BK = select_tokens(*inputs)
    assert torch.equal(index_BK, select_tokens(*inputs))
    return index_BK[0], novelty_BN[0], scene_BN[0]


@given(prompt=prompts(), keep=KEEP, seed=st.integers(0, 99))
def test_selection_keeps_all_text_and_exactly_the_budget(prompt: Prompt, keep: float, seed: int) -> None:
    _, cells, _ = prompt.expected
    video = sum(cell >= 0 for cell in cells)
    ends_in_video = cells[-1] >= 0
    assume(not (ends_in_video and math.floor(keep * video) == 0))
    index_K, novelty_N, scene_N = choose(prompt, keep, seed)
    index = index_K.tolist()
    assert index == sorted(set(index))
    text = {n for n, cell in enumerate(cells) if cell < 0}
    assert text <= set(index)
    assert len(index) == len(text) + math.floor(keep * video)
    assert index[-1] == len(cells) - 1
    fresh = set(scene_N[(novelty_N >= FRESH) & (torch.tensor(cells) >= 0)].tolist())
    if math.floor(keep * video) > len(fresh):
        kept = index_K[torch.tensor(cells)[index_K] >= 0]
        assert fresh <= set(scene_N[kept].tolist())  # every scene with something new keeps its floor


@given(prompt=prompts(), keep=KEEP, seed=st.integers(0, 99))
def test_inside_a_scene_the_least_redundant_tokens_win_ties_by_order(prompt: Prompt, keep: float, seed: int) -> None:
    _, cells, _ = prompt.expected
    assume(cells[-1] < 0)
    index_K, novelty_N, scene_N = choose(prompt, keep, seed)
    kept = set(index_K.tolist())
    for scene in set(scene_N[scene_N >= 0].tolist()):
        tokens = [n for n, s in enumerate(scene_N.tolist()) if s == scene and cells[n] >= 0]
        rank = [(-float(novelty_N[n]), n) for n in tokens]
        expected = [n for _, n in sorted(rank)]
        chosen = [n for n in tokens if n in kept]
        assert chosen == sorted(expected[: len(chosen)])


@given(prompt=prompts(), seed=st.integers(0, 99))
def test_keep_one_is_the_whole_prompt(prompt: Prompt, seed: int) -> None:
    index_K, _, _ = choose(prompt, 1.0, seed)
    assert index_K.tolist() == list(range(len(prompt.expected[0])))


def _still_video(frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Novelty, frame, cell and scene of two sinks and ``frames`` frames of one token, a scene each."""
    frame = [-1, -1, *range(frames)]
    cell = [-1, -1] + [0] * frames
    return torch.ones(1, frames + 2), torch.tensor([frame]), torch.tensor([cell]), torch.tensor([frame])


def test_the_last_token_is_kept_even_when_there_are_more_scenes_than_tokens() -> None:
    inputs = _still_video(6)
    for kept in (3, 4, 5):
        index = select_tokens(*inputs, torch.tensor([[5.0, 4, 3, 2, 1, 0]]), kept, 1.0)[0].tolist()
        assert index[:2] == [0, 1]
        assert index[-1] == 7
        assert len(index) == kept


def test_a_prompt_that_ends_in_a_video_of_which_nothing_is_kept_is_refused() -> None:
    with pytest.raises(PromptError, match="ends in a video must keep at least one"):
        select_tokens(*_still_video(6), torch.zeros(1, 6), 2, 0.5)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PromptError, match="row 0 has 3 video tokens of 5, which does not fit 6 kept"):
        select_tokens(*_still_video(3), torch.zeros(1, 3), 6, 0.5)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_relevance_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(PromptError, match="relevance of scene 1 is NaN or infinite"):
        select_tokens(*_still_video(3), torch.tensor([[0.5, bad, 0.1]]), 4, 0.5)


def test_rows_are_chosen_apart() -> None:
    frame = torch.tensor([[-1, 0, 0, 1, 1, -2], [-1, -1, 0, 0, 1, 1]])
    cell = torch.tensor([[-1, 0, 1, 0, 1, -1], [-1, -1, 0, 1, 0, 1]])
    scene = torch.tensor([[-1, 0, 0, 0, 0, -2], [-1, -1, 0, 0, 1, 1]])
    novelty = torch.tensor([[0.0, 1, 1, 0.1, 0.7, 0], [0, 0, 1, 1, 1, 1]])
    relevance = torch.tensor([[1.0, 0], [0.0, 1]])
    index = select_tokens(novelty, frame, cell, scene, relevance, 4, 0.5)
    assert index[0].tolist() == [0, 1, 2, 5]
    assert index[1].tolist() == [0, 1, 2, 5]
