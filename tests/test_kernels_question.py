"""The attention scorer's kernels, in Triton's interpreter, against the torch implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret

from segmo.runtime import asking
from segmo.runtime.kernels.question import attention_relevance
from segmo.runtime.kernels.specs import Config, QuestionSpec, dtype_name
from segmo.runtime.layout import QUERY, SINK


def _prompt(scenes: list[int], question: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scene and cell of each token: 2 sinks, scenes of the given sizes that begin with a word of text, the
    question.
    """
    scene, cell = [SINK] * 2, [-1] * 2
    for index, size in enumerate(scenes):
        scene += [index] * (size + 1)
        cell += [-1, *range(size)]
    return torch.tensor(scene + [QUERY] * question)[None], torch.tensor(cell + [-1] * question)[None]


def _tensors(length: int, heads: tuple[int, int], head_size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(1, length, count, head_size, generator=generator).to(dtype).transpose(1, 2) for count in heads]


@settings(max_examples=15, deadline=None)
@given(
    scenes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    question=st.integers(1, 20),
    heads=st.sampled_from([(2, 2), (7, 1), (4, 2)]),
    padding=st.sampled_from([0, 3]),
    before=st.sampled_from([0, 1, 2]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_the_torch_implementation(
    scenes: list[int], question: int, heads: tuple[int, int], padding: int, before: int, dtype: torch.dtype
) -> None:
    scene, cell = _prompt(scenes, question)
    scene = torch.nn.functional.pad(scene, (padding, 0), value=SINK)
    cell = torch.nn.functional.pad(cell, (padding, 0), value=-1)
    valid = (torch.arange(scene.shape[1]) >= padding)[None] if padding else None
    q, k = _tensors(scene.shape[1], heads, 80, dtype)
    spec = QuestionSpec(80, dtype_name(dtype), heads[0] // heads[1], Config(32, 16, 4, 2), 32)
    asked = scene == QUERY
    asked[:, padding : padding + before] = True
    got = interpret(attention_relevance, q, k, scene, cell, asked, valid, 0.1, 6, spec)
    expected = asking.attention_relevance(q.double(), k.double(), scene, cell, asked, valid, 0.1, 6)
    torch.testing.assert_close(got, expected.float(), rtol=2e-4, atol=1e-7)


def batch_of(prompts: list[tuple[list[int], int, int]]) -> list[torch.Tensor]:
    """Scene, cell, question and validity of prompts of any length, padded on the left: of each its scenes, the tokens
    of its question, and how many more of these stand in front of the video.
    """
    rows = [_prompt(scenes, question) for scenes, question, _ in prompts]
    longest = max(scene.shape[1] for scene, _ in rows)
    padding = [longest - scene.shape[1] for scene, _ in rows]
    scene, cell = (
        torch.cat(
            [torch.nn.functional.pad(row[at], (pad, 0), value=-1) for row, pad in zip(rows, padding, strict=True)]
        )
        for at in (0, 1)
    )
    asked = scene == QUERY
    for row, (pad, (_, _, before)) in enumerate(zip(padding, prompts, strict=True)):
        asked[row, pad : pad + before] = True
    return [scene, cell, asked, torch.arange(longest) >= torch.tensor(padding)[:, None]]


PROMPTS = st.lists(
    st.tuples(st.lists(st.integers(1, 20), max_size=3), st.integers(0, 12), st.integers(0, 2)), min_size=2, max_size=4
)


@settings(max_examples=10, deadline=None)
@given(prompts=PROMPTS, heads=st.sampled_from([(2, 2), (6, 2)]))
def test_prompts_of_a_batch_score_as_they_do_alone(
    prompts: list[tuple[list[int], int, int]], heads: tuple[int, int]
) -> None:
    """In the kernels, and in torch for all prompts at once, as on a device; prompts without video or question too."""
    scene, cell, asked, valid = batch_of(prompts)
    generator = torch.Generator().manual_seed(len(prompts))
    q, k = (torch.randn(len(prompts), scene.shape[1], n, 64, generator=generator).transpose(1, 2) for n in heads)
    spec = QuestionSpec(64, "fp32", heads[0] // heads[1], Config(32, 16, 4, 2), 32)
    alone = [
        asking.attention_relevance(*(x[row : row + 1] for x in (q, k, scene, cell, asked, valid)), 0.1, 4)
        for row in range(len(prompts))
    ]
    expected = torch.cat(alone)
    got = interpret(attention_relevance, q, k, scene, cell, asked, valid, 0.1, 4, spec)
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=1e-7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "here", lambda x: False)
        together = asking.attention_relevance(q, k, scene, cell, asked, valid, 0.1, 4)
    torch.testing.assert_close(together, expected)


def test_a_prompt_without_a_question_scores_zero() -> None:
    scene, cell = _prompt([5, 5], 0)
    q, k = _tensors(scene.shape[1], (2, 2), 64, torch.float32)
    got = interpret(attention_relevance, q, k, scene, cell, scene == QUERY, None, 0.1, 3)
    assert got.tolist() == [[0, 0, -torch.inf]]
