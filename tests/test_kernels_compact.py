"""Budgeted top-k and compaction in one launch, in Triton's interpreter, against the torch implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret

from segmo.errors import KernelError, PromptError
from segmo.runtime.kernels.compact import Runs, Source, compact, selection_runs
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.selection import choose_tokens, kept_count, select_tokens


def _video(draw: Any) -> tuple[torch.Tensor, ...]:
    """Frame, cell and scene of each token, and their novelty with many ties."""
    frames = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    between, question = draw(st.integers(0, 2)), draw(st.integers(0, 5))
    frame, cell = [SINK] * 2, [-1] * 2
    for index, cells in enumerate(frames):
        frame += [index] * (cells + between)
        cell += [-1] * between + list(range(cells))
    frame += [QUERY] * question
    cell += [-1] * question
    cuts = sorted(draw(st.sets(st.integers(1, len(frames)), max_size=3)))
    scene = [f if f < 0 else sum(cut <= f for cut in cuts) for f in frame]
    level = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, -1e-9])
    levels = draw(st.lists(level, min_size=len(frame), max_size=len(frame)))
    return torch.tensor(frame), torch.tensor(cell), torch.tensor(scene), torch.tensor(levels)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_keeps_what_select_tokens_keeps(data: st.DataObject) -> None:
    frame, cell, scene, novelty = (tensor[None] for tensor in _video(data.draw))
    length = frame.shape[1]
    keep = data.draw(st.sampled_from([0.05, 0.3, 0.7, 1.0]))
    kept = kept_count(length, int((cell >= 0).sum()), 1, keep)
    if cell[0, -1] >= 0:  # the prompt's last token is always kept
        kept = max(kept, int((cell < 0).sum()) + 1)
    relevance = torch.linspace(1, 0, 8)[None]
    hidden = torch.randn(1, length, 20).bfloat16()
    positions = torch.arange(3 * length).reshape(3, 1, length)
    runs = selection_runs(choose_tokens(novelty, frame, cell, scene, relevance, kept, 0.5), novelty, cell, scene)
    assert sum(run[3] for run in runs.table) == kept
    index, cut = interpret(compact, runs, kept, {"hidden": Source(hidden), "positions": Source(positions, 2, 1)})
    expected = select_tokens(novelty, frame, cell, scene, relevance, kept, 0.5)
    assert torch.equal(index, expected)
    assert torch.equal(cut["hidden"], hidden[:, expected[0]])
    assert torch.equal(cut["positions"], positions[:, :, expected[0]])


def test_rows_of_a_batch_keep_different_tokens() -> None:
    """A row that is shared by the batch (cos and sin of 1-D positions) is cut once per row."""
    key = torch.tensor([[3.0, 1, 2, 0], [0, 2, 1, 3]])
    runs = Runs(key, [[0, 0, 4, 2, 0], [1, 0, 4, 2, 0]])
    cos = torch.arange(4 * 6, dtype=torch.float32).reshape(1, 4, 6)
    index, cut = interpret(compact, runs, 2, {"cos": Source(cos)})
    assert index.tolist() == [[0, 2], [1, 3]]
    assert torch.equal(cut["cos"], torch.stack([cos[0, [0, 2]], cos[0, [1, 3]]]))


def test_tokens_of_frames_that_were_not_encoded_are_never_kept() -> None:
    frame = torch.tensor([[SINK, *[0] * 4, *[1] * 4, *[2] * 4, QUERY]])
    cell = torch.tensor([[-1, *[*range(4)] * 3, -1]])
    encoded, scene = (frame != 1), frame.clamp(max=0)
    arguments = (torch.zeros(1, 14), frame, cell, scene, torch.ones(1, 1), 9, 0.5, encoded)
    runs = selection_runs(choose_tokens(*arguments), arguments[0], cell, scene, encoded)
    index, _ = interpret(compact, runs, 9, {})
    assert torch.equal(index, select_tokens(*arguments))
    assert bool(encoded[0, index[0]].all())


def test_heads_stand_between_batch_rows_and_tokens() -> None:
    """Queries of a prefill that is cut inside the decoder, transposed in memory as a model makes them."""
    runs = Runs(torch.tensor([[3.0, 1, 2, 0], [0, 2, 1, 3]]), [[0, 0, 4, 2, 0], [1, 0, 4, 2, 0]])
    q = torch.arange(2 * 4 * 3 * 16, dtype=torch.float32).reshape(2, 4, 3, 16).transpose(1, 2)
    _, cut = interpret(compact, runs, 2, {"q": Source(q, 2)})
    assert torch.equal(cut["q"], torch.stack([q[0][:, [0, 2]], q[1][:, [1, 3]]]))
    assert cut["q"].is_contiguous()


def test_long_runs_need_several_passes_over_their_keys() -> None:
    key = torch.rand(1, 150, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    runs = Runs(key, [[0, 0, 150, 37, 0]])
    index, _ = interpret(compact, runs, 37, {}, block_r=32)
    expected = torch.argsort(key[0], descending=True, stable=True)[:37].sort().values
    assert torch.equal(index[0], expected)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, -3.5, 0.0])
def test_equal_keys_are_kept_in_order(value: float) -> None:
    index, _ = interpret(compact, Runs(torch.full((1, 40), value), [[0, 0, 40, 17, 0]]), 17, {})
    assert index[0].tolist() == list(range(17))


def test_what_cannot_be_copied_is_an_error() -> None:
    runs = Runs(torch.zeros(1, 4), [[0, 0, 4, 2, 0]])
    with pytest.raises(KernelError, match="has not 1 batch rows in dimension 0 and 4 tokens in dimension 1"):
        interpret(compact, runs, 2, {"wrong": Source(torch.zeros(1, 5, 3))})
    with pytest.raises(KernelError, match="cannot copy"):
        interpret(compact, runs, 2, {"wrong": Source(torch.zeros(1, 4, 3, dtype=torch.complex64))})


def test_a_budget_that_does_not_fit_is_an_error() -> None:
    frame, cell = torch.tensor([[0, 0]]), torch.tensor([[0, 1]])
    with pytest.raises(PromptError, match="does not fit 3 kept tokens"):
        choose_tokens(torch.zeros(1, 2), frame, cell, frame, torch.zeros(1, 1), 3, 0.5)
