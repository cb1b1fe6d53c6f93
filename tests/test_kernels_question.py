"""The attention scorer's kernels, in Triton's interpreter, against the torch implementation."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret

from segmo.runtime import relevance
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
    expected = relevance.attention_relevance(q.double(), k.double(), scene, cell, asked, valid, 0.1, 6)
    torch.testing.assert_close(got, expected.float(), rtol=2e-4, atol=1e-7)


def test_a_prompt_without_a_question_scores_zero() -> None:
    scene, cell = _prompt([5, 5], 0)
    q, k = _tensors(scene.shape[1], (2, 2), 64, torch.float32)
    got = interpret(attention_relevance, q, k, scene, cell, scene == QUERY, None, 0.1, 3)
    assert got.tolist() == [[0, 0, -torch.inf]]
