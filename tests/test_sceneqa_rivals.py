"""The rivals of the benchmark keep what their papers say, and as many tokens as their budget."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rivals.diversity import cdpruner, echoprune, greedy_determinant, vidcom2
from rivals.fastvid import ANCHOR_WEIGHT, fastvid, segment_starts
from rivals.flashvid import ALPHA, flashvid, most_diverse, redundancy_trees
from rivals.pevlm import SINK_FRAMES, block_mask
from rivals.selectors import evs, last_frames, random_tokens, uniform_frames

keeps = st.sampled_from([0.5, 0.25, 0.125, 0.0625])
shapes = st.tuples(st.integers(16, 60), st.integers(2, 9), st.integers(0, 1000))


def _features(shape: tuple[int, int, int]) -> torch.Tensor:
    frames, cells, seed = shape
    return torch.randn(frames, cells, 8, generator=torch.Generator().manual_seed(seed))


@given(shapes, keeps)
def test_kept_tokens_are_distinct_ascending_and_as_many_as_the_budget(shape: tuple[int, int, int], keep: float) -> None:
    features = _features(shape)
    total = shape[0] * shape[1]
    saliency = torch.rand(shape[0], shape[1], generator=torch.Generator().manual_seed(1))
    question = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    for kept in (
        random_tokens(features, keep, 3),
        fastvid(features, saliency, keep)[0],
        flashvid(features, saliency, keep)[0],
        vidcom2(features, keep, 0),
        cdpruner(features, question, keep),
        echoprune(features, question, keep),
    ):
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert len(kept) == math.floor(keep * total)
    kept = evs(features, keep, 0)
    assert len(kept) == max(shape[1], math.floor(keep * total))
    assert kept[: shape[1]].tolist() == list(range(shape[1])), "the first frame stays"
    kept = uniform_frames(features, keep, 0)
    assert len(kept) == max(1, math.floor(keep * shape[0])) * shape[1]


def test_uniform_frames_are_evenly_spread() -> None:
    kept = uniform_frames(torch.zeros(16, 2, 4), 0.25, 0)
    assert (kept[::2] // 2).tolist() == [2, 6, 10, 14]


def test_evs_keeps_what_changed() -> None:
    features = torch.ones(10, 3, 4)
    features[6, 1] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    kept = evs(features, 5 / 30, 0).tolist()
    assert kept == [0, 1, 2, 6 * 3 + 1, 7 * 3 + 1]


def test_fastvid_cuts_where_frames_differ() -> None:
    features = torch.cat([torch.eye(4)[i].expand(5, 2, 4) for i in range(4)])
    assert {0, 5, 10, 15} <= set(segment_starts(features))


def test_fastvid_merges_what_it_drops_into_the_nearest_kept_token() -> None:
    features = torch.zeros(8, 1, 2)
    features[:, 0, 0] = torch.arange(1.0, 9.0)
    kept, merged = fastvid(features, torch.zeros(8, 1), 0.125)
    assert len(kept) == 1
    others = torch.cat([features[: kept[0], 0], features[kept[0] + 1 :, 0]])
    # All frames point the same way, so they are segments of one frame but for the last one.
    assert merged.shape == (1, 2)
    assert float(merged[0, 0]) <= max(float(features[kept[0], 0, 0]), float(others.mean()) / ANCHOR_WEIGHT)


def test_random_tokens_depend_on_the_seed_alone() -> None:
    features = torch.zeros(16, 4, 2)
    assert random_tokens(features, 0.25, 1).equal(random_tokens(features, 0.25, 1))
    assert not random_tokens(features, 0.25, 1).equal(random_tokens(features, 0.25, 2))


@pytest.mark.parametrize("keep", [0.5, 0.125])
def test_fastvid_budget_follows_segment_length(keep: float) -> None:
    long, short = torch.eye(4)[0].expand(24, 4, 4), torch.eye(4)[1].expand(8, 4, 4)
    noise = 0.01 * torch.randn(32, 4, 4, generator=torch.Generator().manual_seed(0))
    kept, _ = fastvid(torch.cat([long, short]) + noise, torch.rand(32, 4), keep)
    share = float((kept < 24 * 4).float().mean())
    assert abs(share - 0.75) < 0.1


def test_last_frames_are_the_last_ones() -> None:
    assert last_frames(torch.zeros(16, 2, 4), 0.25, 0).tolist() == list(range(24, 32))


def test_the_greedy_determinant_takes_the_largest_at_every_step() -> None:
    features = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)).double()
    kernel, taken = features @ features.T, []
    for _ in range(4):
        left = [n for n in range(9) if n not in taken]
        taken.append(max(left, key=lambda n: float(torch.linalg.det(kernel[[*taken, n]][:, [*taken, n]]))))
    assert greedy_determinant(kernel, 4).tolist() == sorted(taken)


def test_cdpruner_takes_what_is_asked_for_and_each_thing_once() -> None:
    features = torch.eye(6)[[0, 0, 1, 1, 2, 2, 3, 3]].reshape(4, 2, 6)
    kept = cdpruner(features, torch.eye(6)[[1, 2]], 0.25)
    assert len({int(n) // 2 for n in kept}) == 2
    assert {int(n) // 2 for n in kept} == {1, 2}


def test_echoprune_drops_what_the_frame_before_says_in_another_place() -> None:
    features = torch.eye(8)[[0, 1, 2, 1, 2, 0, 2, 0, 5]].reshape(3, 3, 8)
    assert echoprune(features, torch.zeros(1, 8), 4 / 9).tolist() == [0, 1, 2, 8]


def test_vidcom2_gives_more_to_the_frame_that_is_unlike_the_video() -> None:
    features = torch.eye(6)[[0] * 20].reshape(5, 4, 6).clone()
    features[2] = torch.eye(6)[[2, 3, 4, 5]]
    kept = vidcom2(features, 0.25, 0)
    assert ((kept >= 8) & (kept < 12)).sum() >= 2


def test_flashvid_follows_what_moves_until_its_segment_ends() -> None:
    """One thing wanders over frames whose other tokens are unlike everything."""
    unit = torch.eye(40)[1 + torch.arange(32).view(8, 4)]
    thing = torch.tensor([2, 0, 3, 1, 0, 2, 1, 3])
    unit[torch.arange(8), thing] = torch.eye(40)[0]
    free = torch.ones(8, 4, dtype=torch.bool)
    free[7, 3] = False
    root = redundancy_trees(unit, free, torch.tensor([0] * 5 + [1] * 3)).view(8, 4)
    assert root[torch.arange(8), thing].tolist() == [2] * 5 + [5 * 4 + 2] * 2 + [-1]
    for frame in range(8):
        for cell in set(range(4)) - {int(thing[frame])}:
            assert root[frame, cell] == frame * 4 + cell


def test_flashvid_merges_a_tree_into_its_mean() -> None:
    features = torch.zeros(40, 1, 2)
    features[:, 0, 0] = torch.arange(1.0, 41.0)
    kept, merged = flashvid(features, torch.ones(40, 1), 0.1)
    assert len(kept) == 4
    starts = [*segment_starts(features), 40]
    diverse, (root,) = kept[merged[:, 0] == kept + 1].tolist(), kept[merged[:, 0] != kept + 1].tolist()
    assert len(diverse) == round(ALPHA * 4)
    end = min(frame for frame in (*starts, *diverse) if frame > root)  # what is taken out breaks a tree
    tree = range(root + 1, end + 1)
    assert float(merged[kept.tolist().index(root), 0]) == pytest.approx(sum(tree) / len(tree))


def test_the_most_diverse_tokens_are_far_apart() -> None:
    place = torch.tensor([0.0, 0.1, 5.0, 5.2, 9.0])
    assert sorted(most_diverse((place[:, None] - place).abs(), 3)) == [0, 2, 4]


def test_pevlm_blocks_see_the_sink_and_themselves() -> None:
    frames, cells, blocks = SINK_FRAMES + 6, 2, 3
    seen = block_mask(2, frames, cells, 3, blocks)
    kind = ["sink"] * (2 + SINK_FRAMES * cells)
    kind += [f"block {n // (2 * cells)}" for n in range(6 * cells)] + ["question"] * 3
    for row, mine in enumerate(kind):
        for column, other in enumerate(kind):
            expected = column <= row and (other == "sink" or mine == "question" or mine == other)
            assert bool(seen[row, column]) == expected
