"""What is new inside a scene, against plain loops in fp64; and that no place in a frame is better than another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret
from strategies import VIDEO, Piece, Prompt, prompts
from test_features import cosine
from torch import Tensor

from segmo.runtime.features import CHUNK, scan_video
from segmo.runtime.kernels import scan as generated
from segmo.runtime.layout import QUERY
from segmo.runtime.novelty import BACK, FARTHEST, PICKS, distance_to, farthest_first, scene_novelty
from segmo.runtime.scenes import find_scenes
from segmo.runtime.selection import kept_count, row_budgets, select_tokens


def traversal(distance: Tensor, known: Tensor, start: Tensor) -> list[float]:
    """Farthest-point traversal, token by token."""
    radius = [0.0] * len(start)
    taken: list[int] = []
    left = list(range(len(start)))
    while left:
        near = {n: min([float(known[n]), *(float(distance[n, k]) for k in taken)]) for n in left}
        wish = near if taken else {n: near[n] + float(start[n]) for n in left}
        if len(taken) == PICKS:
            for n in left:
                radius[n] = near[n]
            break
        best = max(left, key=lambda n: (wish[n], -n))
        radius[best] = near[best]
        taken.append(best)
        left.remove(best)
    return radius


def expected_novelty(x_NH: Tensor, prompt: Prompt, scene: list[int]) -> list[float]:
    """Novelty of every token, from the definition."""
    frames, cells, videos = prompt.expected
    token_of = {(f, c): n for n, (f, c) in enumerate(zip(frames, cells, strict=True)) if c >= 0}
    head_of: dict[int, int] = {}
    for n, cell in enumerate(cells):
        if cell >= 0:
            head_of.setdefault(scene[n], frames[n])
    out = [0.0] * len(cells)
    for (frame, cell), n in token_of.items():
        head = head_of[scene[n]]
        told = [token_of.get((f, cell)) for f in (frame - 1, head)] if frame != head else []
        out[n] = min((1 - cosine(x_NH[n], x_NH[k]) for k in told if k is not None), default=1.0)
    for number, head in head_of.items():
        mine = [n for (frame, _), n in token_of.items() if frame == head]
        unit = torch.nn.functional.normalize(x_NH[mine].double(), dim=-1)
        unlike = 1 - unit @ torch.nn.functional.normalize(x_NH[mine].double().sum(0), dim=0)
        known = []
        for n in mine:
            before = [token_of.get((head_of[s], cells[n])) for s in range(max(number - BACK, 0), number)]
            told = [k for k in before if k is not None and videos[k] == videos[n]]
            known.append(min((1 - cosine(x_NH[n], x_NH[k]) for k in told), default=FARTHEST))
        for n, radius in zip(mine, traversal(1 - unit @ unit.T, torch.tensor(known), unlike), strict=True):
            out[n] = radius
    return out


def measured(x_BNH: Tensor, prompt: Prompt) -> tuple[Tensor, list[int]]:
    """Novelty (N,) and scene of every token."""
    frames, cells, _ = prompt.expected
    frame_BN, cell_BN = torch.tensor([frames]), torch.tensor([cells])
    novelty_BN, similarity_BN, _ = scan_video(x_BNH, frame_BN, cell_BN)
    scene_BN = find_scenes(similarity_BN, frame_BN, cell_BN, 4)
    return scene_novelty(x_BNH, novelty_BN, frame_BN, cell_BN, scene_BN)[0], scene_BN[0].tolist()


@given(
    prompt=prompts().filter(lambda prompt: prompt.told_apart),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_novelty_is_its_definition(prompt: Prompt, dtype: torch.dtype, seed: int) -> None:
    length = len(prompt.expected[0])
    x_BNH = torch.randn(1, length, 12, generator=torch.Generator().manual_seed(seed)).to(dtype)
    novelty_N, scene = measured(x_BNH, prompt)
    expected = torch.tensor(expected_novelty(x_BNH[0], prompt, scene))
    torch.testing.assert_close(novelty_N, expected, rtol=0, atol=4e-6)


def test_neither_chunks_nor_large_frames_show() -> None:
    """More tokens than a chunk, more tokens in a frame than are taken one by one, and newline tokens behind them."""
    prompt = Prompt((Piece(VIDEO, frames=6, height=11, width=CHUNK // 50, trailing=1),))
    length = len(prompt.expected[0])
    assert length > CHUNK
    assert length // 6 > PICKS
    x_BNH = torch.randn(1, length, 12, generator=torch.Generator().manual_seed(0))
    novelty_N, scene = measured(x_BNH, prompt)
    torch.testing.assert_close(novelty_N, torch.tensor(expected_novelty(x_BNH[0], prompt, scene)), rtol=0, atol=4e-6)


def test_first_frames_of_several_sizes_stand_side_by_side() -> None:
    """A frame with fewer cells than another is not touched by what is not there."""
    real_SC = torch.tensor([[True] * 4, [True, True, False, False]])
    distance_SCC = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))
    distance_SCC = distance_SCC + distance_SCC.transpose(1, 2)
    start_SC = torch.tensor([[0.1, 0.3, 0.2, 0.3], [0.1, 0.2, 9.0, 9.0]])
    known_SC = torch.full((2, 4), FARTHEST)
    radius_SC = farthest_first(distance_SCC, known_SC, start_SC, real_SC)
    assert radius_SC[0].tolist() == pytest.approx(traversal(distance_SCC[0], known_SC[0], start_SC[0]))
    assert radius_SC[1].tolist() == pytest.approx([float(distance_SCC[1, 0, 1]), FARTHEST, 0, 0])


def test_what_comes_back_is_not_new() -> None:
    """A thing passes in front of a still background: the thing is new, and what it uncovers is not."""
    background, thing = torch.eye(6)[:4], torch.eye(6)[5]
    video = background.repeat(4, 1, 1)
    video[2, 1] = thing
    frame, cell = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)
    x, scene = video.reshape(1, 16, 6), torch.zeros(1, 16, dtype=torch.long)
    novelty, _, _ = scan_video(x, frame[None], cell[None])
    assert novelty[0, 13] == 1
    found = scene_novelty(x, novelty, frame[None], cell[None], scene)[0]
    assert found[9] == 1
    assert found[10:].eq(0).all()
    assert found[4:9].eq(0).all()


def test_a_scene_that_goes_on_after_an_interruption_is_not_new() -> None:
    """One frame of something else makes three scenes of one: the third shows nothing, in another video all of it."""
    first, between = torch.eye(12)[:4], torch.eye(12)[4:8]
    x = torch.stack([first, first, between, first, first]).reshape(1, 20, 12)
    frame, cell = torch.arange(5).repeat_interleave(4)[None], torch.arange(4).repeat(5)[None]
    scene = torch.tensor([0, 0, 1, 2, 2]).repeat_interleave(4)[None]
    novelty, _, _ = scan_video(x, frame, cell)
    found = scene_novelty(x, novelty, frame, cell, scene)[0]
    assert found[:4].tolist() == [FARTHEST, 1, 1, 1]
    assert found[8:12].eq(1).all()
    assert found[4:8].eq(0).all()
    assert found[12:].eq(0).all()
    budgets = row_budgets(found.numpy(), scene[0].numpy(), np.float32([1, 0, 0]), 4, 0.5, keep_last=False)
    assert budgets[2] == 0
    x, frame, cell, scene = (torch.cat([t[:, :12], t[:, :1], t[:, 12:]], 1) for t in (x, frame, cell, scene))
    cell[0, 12], frame[0, 12], scene[0, 12] = -1, QUERY, QUERY  # a turn in front of the fourth frame: another video
    novelty, _, _ = scan_video(x, frame, cell)
    assert scene_novelty(x, novelty, frame, cell, scene)[0, 13:17].tolist() == [FARTHEST, 1, 1, 1]


def _kept(x_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, keep: float) -> Tensor:
    novelty_BN, similarity_BN, _ = scan_video(x_BNH, frame_BN, cell_BN)
    scene_BN = find_scenes(similarity_BN, frame_BN, cell_BN, 8)
    novelty_BN = scene_novelty(x_BNH, novelty_BN, frame_BN, cell_BN, scene_BN)
    kept = kept_count(frame_BN.shape[1], frame_BN.shape[1] - 2, 1, keep)
    relevance_BS = torch.linspace(1, 0, 8)[None]
    return select_tokens(novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, kept, 0.5)[0]


@given(
    height=st.integers(1, 5),
    width=st.integers(2, 6),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    keep=st.sampled_from([0.0625, 0.125, 0.25, 0.5]),
    seed=st.integers(0, 999),
)
def test_mirroring_every_frame_mirrors_what_is_kept(
    height: int, width: int, lengths: list[int], keep: float, seed: int
) -> None:
    """No place in a frame is better than another: top and left have no say where features do not tie."""
    generator = torch.Generator().manual_seed(seed)
    frames, cells = sum(lengths), height * width
    places = torch.randn(len(lengths), height, width, 16, generator=generator)
    video = places.repeat_interleave(torch.tensor(lengths), dim=0)
    video = video + 0.3 * torch.randn(video.shape, generator=generator)
    question = torch.randn(1, 2, 16, generator=generator)
    frame = torch.tensor([[*range(frames)]]).repeat_interleave(cells, dim=1)
    frame_BN, cell_BN = (
        torch.nn.functional.pad(x, (0, 2), value=v) for x, v in ((frame, -2), (_cells(frames, cells), -1))
    )
    place = torch.arange(frames * cells).view(frames, height, width)
    kept = _kept(torch.cat([video.view(1, -1, 16), question], 1), frame_BN, cell_BN, keep)
    for dims in ((1,), (2,), (1, 2)):
        mirrored = torch.cat([video.flip(dims).reshape(1, -1, 16), question], 1)
        where = torch.cat([place.flip(dims).flatten(), frames * cells + torch.arange(2)])
        assert torch.equal(where[_kept(mirrored, frame_BN, cell_BN, keep)].sort().values, kept)


def _cells(frames: int, cells: int) -> Tensor:
    return torch.arange(cells).repeat(frames)[None]


@settings(max_examples=8, deadline=None)
@given(
    frames=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_the_generated_comparison_equals_the_torch_implementation(
    frames: list[int], dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(frames)
    x = torch.randn(tokens + 3, 40, generator=generator).to(dtype)
    at = torch.randperm(tokens + 3, generator=generator)[:tokens].sort().values
    other = torch.randint(-1, tokens, (tokens,), generator=generator)
    frame = torch.arange(len(frames)).repeat_interleave(torch.tensor(frames))
    given_to_both = (x, at.numpy(), other, frame.numpy())
    found = interpret(generated.distance_to, *given_to_both)
    torch.testing.assert_close(found, distance_to(*given_to_both), rtol=1e-5, atol=2e-6)
