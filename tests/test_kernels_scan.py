"""The pass over the video features, in Triton's interpreter, against the torch implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret

from segmo.errors import PromptError
from segmo.runtime import features
from segmo.runtime.kernels.scan import scan_tokens, scan_video
from segmo.runtime.kernels.specs import Config, ScanSpec, dtype_name
from segmo.runtime.layout import QUERY, SINK


def layout(frames: list[int], text_between: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame and cell of each token: 3 sinks, frames of the given numbers of cells with text before each, 4
    of question.
    """
    frame, cell = [SINK] * 3, [-1] * 3
    for index, cells in enumerate(frames):
        frame += [index] * (text_between + cells)
        cell += [-1] * text_between + list(range(cells))
    return torch.tensor(frame + [QUERY] * 4), torch.tensor(cell + [-1] * 4)


@settings(max_examples=15, deadline=None)
@given(
    frames=st.lists(st.integers(1, 21), min_size=1, max_size=5),
    text_between=st.integers(0, 2),
    hidden=st.sampled_from([16, 40, 96]),
    batch=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_equals_the_torch_implementation(
    frames: list[int], text_between: int, hidden: int, batch: int, dtype: torch.dtype
) -> None:
    frame_N, cell_N = layout(frames, text_between)
    frame_BN, cell_BN = frame_N.expand(batch, -1), cell_N.expand(batch, -1)
    x = torch.randn(batch, len(frame_N), hidden, generator=torch.Generator().manual_seed(hidden)).to(dtype)
    novelty, similarity, mean = interpret(
        scan_video, x, frame_BN, cell_BN, ScanSpec(hidden, dtype_name(dtype), Config(16, 32, 4, 2))
    )
    expected_novelty, expected_similarity, expected_mean = features.scan_video(x, frame_BN, cell_BN)
    torch.testing.assert_close(novelty, expected_novelty, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(similarity, expected_similarity, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-5, atol=2e-6)


@settings(max_examples=10, deadline=None)
@given(
    frames=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    start=st.integers(0, 5),
    videos=st.lists(st.integers(0, 5), max_size=2),
    gap=st.integers(0, 3),
)
def test_some_frames_alone_equal_the_torch_implementation(
    frames: list[int], start: int, videos: list[int], gap: int
) -> None:
    frame_N, cell_N = layout(frames, 1)
    own_T = ((cell_N >= 0) & (frame_N >= min(start, len(frames) - 1))).nonzero()[:, 0]
    first_F = torch.tensor([number in (0, *videos) for number in range(len(frames))])
    rows = torch.randn(gap + len(own_T), 40, generator=torch.Generator().manual_seed(gap))
    given_to_both = (rows, torch.arange(len(own_T)) + gap, frame_N[own_T], cell_N[own_T], first_F)
    found = interpret(scan_tokens, *given_to_both)
    for one, expected in zip(found, features.scan_tokens(*given_to_both), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=2e-6)


def test_text_alone() -> None:
    frame_BN, cell_BN = torch.full((1, 5), SINK), torch.full((1, 5), -1)
    novelty, similarity, _ = interpret(scan_video, torch.randn(1, 5, 16), frame_BN, cell_BN)
    assert torch.equal(novelty, torch.zeros(1, 5))
    assert torch.equal(similarity, torch.ones(1, 5))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_an_error(value: float) -> None:
    frame_N, cell_N = layout([4, 4], 0)
    x = torch.randn(1, len(frame_N), 16)
    x[0, 3 + 4 + 2, 5] = value
    with pytest.raises(PromptError, match="frame 1, cell 2"):
        interpret(scan_video, x, frame_N[None], cell_N[None])
