"""Novelty of tokens and similarity of frames, against plain loops in fp64."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import TEXT, VIDEO, Piece, Prompt, prompts
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import CHUNK, add_frames, previous_cell, scan_video


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def expected_scan(embeds_NH: Tensor, prompt: Prompt) -> tuple[list[float], list[float]]:
    """Novelty and similarity of every token, from the definitions."""
    frames, cells, videos = prompt.expected
    token_of = {(v, f, c): n for n, (f, c, v) in enumerate(zip(frames, cells, videos, strict=True)) if v >= 0}
    mean_of = {
        (v, f): torch.stack([embeds_NH[n] for key, n in token_of.items() if key[:2] == (v, f)]).double().mean(0)
        for v, f, _ in token_of
    }
    novelty, similarity = [], []
    for n, (frame, cell, video) in enumerate(zip(frames, cells, videos, strict=True)):
        before = token_of.get((video, frame - 1, cell))
        novelty.append(0.0 if video < 0 else 1.0 if before is None else 1 - cosine(embeds_NH[n], embeds_NH[before]))
        earlier = mean_of.get((video, frame - 1)) if video >= 0 else None
        similarity.append(1.0 if earlier is None else cosine(mean_of[video, frame], earlier))
    return novelty, similarity


@given(
    prompt=prompts(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_scan_is_its_definition(prompt: Prompt, dtype: torch.dtype, scale: float) -> None:
    frames, cells, _ = prompt.expected
    generator = torch.Generator().manual_seed(len(frames))
    embeds_BNH = (torch.randn(1, len(frames), 32, generator=generator) * scale).to(dtype)
    novelty_BN, similarity_BN, mean_BH = scan_video(embeds_BNH, torch.tensor([frames]), torch.tensor([cells]))
    novelty, similarity = expected_scan(embeds_BNH[0], prompt)
    torch.testing.assert_close(novelty_BN[0], torch.tensor(novelty), rtol=0, atol=2e-6)
    torch.testing.assert_close(similarity_BN[0], torch.tensor(similarity), rtol=0, atol=2e-6)
    mean_H = embeds_BNH[0][torch.tensor(cells) >= 0].double().mean(0)
    torch.testing.assert_close(mean_BH[0].double(), mean_H, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "videos",
    [[(2, CHUNK + 3, 1)], [(5, CHUNK // 4 + 1, 1)], [(CHUNK, 2, 0), (CHUNK // 4, 3, 2)], [(9, CHUNK // 6, 3)]],
    ids=["a frame across two", "a block of each frame", "small frames of two sizes", "a longer last frame"],
)
def test_chunks_do_not_show(videos: list[tuple[int, int, int]], dtype: torch.dtype) -> None:
    """More tokens than one chunk, of videos by their frames, tokens of each, and tokens behind the last one."""
    pieces = [
        (Piece(VIDEO, frames=frames, height=height, trailing=more), Piece(TEXT, text=2))
        for frames, height, more in videos
    ]
    prompt = Prompt(tuple(chain.from_iterable(pieces)))
    frames, cells, _ = prompt.expected
    assert len(frames) > CHUNK
    embeds_BNH = torch.randn(1, len(frames), 8).to(dtype)
    novelty_BN, similarity_BN, _ = scan_video(embeds_BNH, torch.tensor([frames]), torch.tensor([cells]))
    novelty, similarity = expected_scan(embeds_BNH[0], prompt)
    torch.testing.assert_close(novelty_BN[0], torch.tensor(novelty), rtol=0, atol=2e-6)
    torch.testing.assert_close(similarity_BN[0], torch.tensor(similarity), rtol=0, atol=2e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_frame_s_sum_is_the_same_whatever_is_beside_it(stride: int) -> None:
    frames, cells = 4, 57
    x_TH = torch.randn(frames * cells, 3676 * stride)[:, ::stride]
    total_FH = torch.zeros(frames, 3676)
    add_frames(total_FH, x_TH, np.arange(frames).repeat(cells))
    assert torch.equal(total_FH, torch.stack([frame.sum(0) for frame in x_TH.split(cells)]))


def test_rows_do_not_mix() -> None:
    frame_BN = torch.tensor([[-1, 0, 1, 2, -2], [0, 1, 2, -2, -2]])
    cell_BN = torch.tensor([[-1, 0, 0, 0, -1], [0, 0, 0, -1, -1]])
    embeds_BNH = torch.randn(2, 5, 8)
    both = scan_video(embeds_BNH, frame_BN, cell_BN)
    for row in range(2):
        one = slice(row, row + 1)
        alone = scan_video(embeds_BNH[one], frame_BN[one], cell_BN[one])
        assert all(torch.equal(a[one], b) for a, b in zip(both, alone, strict=True))


def test_repeated_frames_are_not_new_and_black_ones_do_not_divide_by_zero() -> None:
    frame_BN, cell_BN = torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 1, 0, 1, 0, 1]])
    embeds_BNH = torch.randn(1, 2, 8).repeat(1, 3, 1)
    embeds_BNH[:, 4:] = 0
    novelty_BN, similarity_BN, _ = scan_video(embeds_BNH, frame_BN, cell_BN)
    torch.testing.assert_close(novelty_BN[0], torch.tensor([1.0, 1, 0, 0, 1, 1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(similarity_BN[0], torch.tensor([1.0, 1, 1, 1, 0, 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    frame_BN, cell_BN = torch.tensor([[-1, 0, 0, 1, 1]]), torch.tensor([[-1, 0, 1, 0, 1]])
    embeds_BNH = torch.randn(1, 5, 8)
    embeds_BNH[0, 4, 3] = bad
    with pytest.raises(PromptError, match=r"NaN or infinity \(first in frame 1, cell 1\)"):
        scan_video(embeds_BNH, frame_BN, cell_BN)


def test_a_prompt_without_video_has_nothing_new() -> None:
    text = torch.full((1, 3), -2)
    novelty_BN, similarity_BN, _ = scan_video(torch.full((1, 3, 4), torch.nan), text, torch.full((1, 3), -1))
    assert not novelty_BN.any()
    assert (similarity_BN == 1).all()


def test_previous_cell_when_frames_differ_in_size() -> None:
    frame, cell = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 0, 1, 0, 1, 2])
    assert previous_cell(frame, cell).tolist() == [-1, -1, -1, 0, 1, 3, 4, -1]
