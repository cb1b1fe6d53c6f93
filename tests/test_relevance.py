"""Scorers, against their definitions as plain loops.

Legend: N prompt tokens, S scenes, A query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Heads, heads

from segmo.errors import PromptError
from segmo.runtime.features import CHUNK
from segmo.runtime.relevance import ROWS, attention_relevance, embedding_relevance, external_relevance

MAX_SCENES = 6


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[int], list[bool]]:
    """Scene, cell and validity of a row with padding on the left or right, and perhaps no question."""
    scene: list[int] = [-1] * draw(st.integers(0, 3))
    left = draw(st.integers(0, len(scene)))
    for number in range(draw(st.integers(1, 4))):
        scene += [number] * draw(st.integers(1, 6))
    cell = [0 if s >= 0 else -1 for s in scene]
    for position in range(1, len(scene)):  # some tokens between video tokens are text
        if scene[position] == scene[position - 1] >= 0 and draw(st.integers(0, 4)) == 0:
            cell[position] = -1
    question, right = draw(st.integers(0, 4)), draw(st.integers(0, 2))
    length = len(scene) + question
    scene, cell = scene + [-2] * (question + right), cell + [-1] * (question + right)
    return scene, cell, [left <= n < length for n in range(len(scene))]


def check_scores(out_BS: torch.Tensor, expected: list[float]) -> None:
    assert out_BS.shape == (1, MAX_SCENES)
    assert out_BS.dtype == torch.float32
    missing = [-torch.inf] * (MAX_SCENES - len(expected))
    torch.testing.assert_close(
        out_BS[0].double(), torch.tensor([*expected, *missing], dtype=torch.double), rtol=2e-5, atol=2e-6
    )


@given(row=rows(), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_embedding_relevance_is_the_mean_best_cosine(
    row: tuple[list[int], list[int], list[bool]], seed: int, dtype: torch.dtype
) -> None:
    scene, cell, valid = row
    generator = torch.Generator().manual_seed(seed)
    embeds_BNH = torch.randn(1, len(scene), 16, generator=generator).to(dtype)
    unit = torch.nn.functional.normalize(embeds_BNH[0].double(), dim=-1)
    question = [n for n, s in enumerate(scene) if s == -2 and valid[n]]
    expected = []
    for number in range(max(scene) + 1):
        tokens = [n for n, s in enumerate(scene) if s == number and cell[n] >= 0]
        best = [max(float(unit[q] @ unit[n]) for n in tokens) for q in question]
        expected.append(sum(best) / len(best) if best else 0.0)
    inputs = (torch.tensor([scene]), torch.tensor([cell]))
    check_scores(embedding_relevance(embeds_BNH, *inputs, torch.tensor([valid]), MAX_SCENES), expected)


def test_embedding_relevance_finds_the_scene_that_shows_what_is_asked() -> None:
    video = torch.randn(3 * CHUNK, 32)
    scene = [-1, *[n * 3 // len(video) for n in range(len(video))], -2, -2]
    cell = [-1, *[0] * len(video), -1, -1]
    question = video[2 * CHUNK + 5] * 7  # scene 2 holds the very same direction
    embeds_BNH = torch.cat([torch.zeros(1, 32), video, question[None], question[None]])[None]
    score_BS = embedding_relevance(embeds_BNH, torch.tensor([scene]), torch.tensor([cell]), None, MAX_SCENES)
    assert score_BS[0, :3].argmax() == 2
    assert score_BS[0, 2] == pytest.approx(1, abs=1e-5)


def expected_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, scene: list[int], cell: list[int], valid: list[bool]
) -> list[float]:
    """The full attention matrix in fp64, then means over heads, question and a scene's tokens."""
    ratio = q.shape[0] // k.shape[0]
    logits = torch.einsum("aid,ajd->aij", q.double(), k.double().repeat_interleave(ratio, 0)) * scale
    length = len(scene)
    seen = torch.ones(length, length).tril().bool() & torch.tensor(valid)
    weight = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    question = [n for n, s in enumerate(scene) if s == -2 and valid[n]]
    out = []
    for number in range(max(scene) + 1):
        tokens = [n for n, s in enumerate(scene) if s == number and cell[n] >= 0]
        out.append(float(weight[:, question][:, :, tokens].mean()) if question else 0.0)
    return out


@given(row=rows(), shape=heads((torch.float32,)))
def test_attention_relevance_is_the_mean_attention(row: tuple[list[int], list[int], list[bool]], shape: Heads) -> None:
    scene, cell, valid = row
    q, k, _ = shape.tensors(1, len(scene))
    expected = expected_attention(q[0], k[0], 0.2, scene, cell, valid)
    out_BS = attention_relevance(
        q, k, torch.tensor([scene]), torch.tensor([cell]), torch.tensor([valid]), 0.2, MAX_SCENES
    )
    check_scores(out_BS, expected)


def test_attention_relevance_of_a_long_question() -> None:
    scene = [-1, 0, 0, 1, 1, 1] + [-2] * (2 * ROWS + 3)
    cell = [-1, 0, 0, 0, 0, 0] + [-1] * (2 * ROWS + 3)
    q, k, _ = Heads(2, 2, 16, torch.float32, 3).tensors(1, len(scene))
    expected = expected_attention(q[0], k[0], 0.3, scene, cell, [True] * len(scene))
    check_scores(attention_relevance(q, k, torch.tensor([scene]), torch.tensor([cell]), None, 0.3, 6), expected)


def test_rows_without_video_have_no_scene() -> None:
    scene, cell = torch.full((1, 4), -2), torch.full((1, 4), -1)
    q, k, _ = Heads(1, 2, 8, torch.float32, 0).tensors(1, 4)
    for out_BS in (
        embedding_relevance(torch.randn(1, 4, 8), scene, cell, None, 3),
        attention_relevance(q, k, scene, cell, None, 1.0, 3),
        external_relevance(torch.ones(2), scene, scene, cell, 3),
    ):
        assert out_BS.tolist() == [[-torch.inf] * 3]


# Two rows: four frames in two scenes, and four frames in three.
SCENE = torch.tensor([[-1, 0, 0, 0, 1, 1, -2], [0, 0, 1, 2, 2, 2, -2]])
FRAME = torch.tensor([[-1, 0, 1, 2, 3, 3, -2], [0, 0, 1, 2, 3, 3, -2]])
CELL = torch.tensor([[-1, 0, 0, 0, 0, 1, -1], [0, 1, 0, 0, 0, 1, -1]])


def test_external_scores_of_frames_are_averaged_over_scenes() -> None:
    out_BS = external_relevance(torch.tensor([1.0, 2, 6, 4]), SCENE, FRAME, CELL, 3)
    assert out_BS.tolist() == [[3, 4, -torch.inf], [1, 2, 5]]


def test_external_scores_of_scenes_or_rows_are_taken_as_they_are() -> None:
    first = (SCENE[:1], FRAME[:1], CELL[:1])
    assert external_relevance(torch.tensor([0.5, 0.25]), *first, 3).tolist() == [[0.5, 0.25, -torch.inf]]
    both = external_relevance(torch.arange(8).reshape(2, 4).half(), SCENE, FRAME, CELL, 3)
    assert both.tolist() == [[1, 3, -torch.inf], [4, 5, 6.5]]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.empty(0), "needs scores"),
        (torch.tensor([1.0, float("nan"), 0, 0]), "NaN or infinity"),
        (torch.tensor(1.0), "fit neither the 4 frames nor the 2 scenes"),
        (torch.ones(5), "5 external scores fit neither the 4 frames nor the 2 scenes"),
        (torch.ones(3, 4), "have 3 rows, the batch has 2"),
    ],
)
def test_external_scores_that_do_not_fit_are_refused(scores: torch.Tensor, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        external_relevance(scores, SCENE, FRAME, CELL, 3)
