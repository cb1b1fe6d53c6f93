"""Scorers, against their definitions as plain loops.

Legend: N prompt tokens, S scenes, A query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Heads, heads

from segmo.errors import PromptError
from segmo.runtime import frame_fit
from segmo.runtime.asking import ROWS, attention_relevance
from segmo.runtime.features import CHUNK
from segmo.runtime.frame_fit import batch_fit, row_fits
from segmo.runtime.relevance import embedding_relevance, external_relevance
from segmo.runtime.video_tokens import VideoTokens

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


def expected_embedding(embeds: torch.Tensor, scene: list[int], cell: list[int], valid: list[bool]) -> list[float]:
    """Frame by frame in fp64: centred features, mean cosine, a scene's best frame, words weighted by their spread."""
    embeds = embeds.double()
    video = [n for n in range(len(scene)) if cell[n] >= 0]
    common = embeds[video].mean(0)
    frames: list[list[int]] = []
    for n in video:
        if cell[n] == 0:
            frames.append([])
        frames[-1].append(n)
    scenes = max(scene) + 1
    question = [n for n, s in enumerate(scene) if s == -2 and valid[n]]
    if not question:
        return [0.0] * scenes
    table = []
    for q in question:
        cosines = [
            [float(torch.cosine_similarity(embeds[q], embeds[n] - common, dim=0)) for n in frame] for frame in frames
        ]
        heat = max(statistics.pstdev([cosine for frame in cosines for cosine in frame]), 1e-12)
        fit = [
            max(frame) + heat * math.log(sum(math.exp((c - max(frame)) / heat) for c in frame) / len(frame))
            for frame in cosines
        ]
        table.append(
            [max(f for f, frame in zip(fit, frames, strict=True) if scene[frame[0]] == s) for s in range(scenes)]
        )
    best = torch.tensor(table, dtype=torch.double)
    weight = best.std(dim=1, correction=0) + 1e-12
    return ((weight / weight.sum()) @ best).tolist()


@given(row=rows(), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_embedding_relevance_is_its_definition(
    row: tuple[list[int], list[int], list[bool]], seed: int, dtype: torch.dtype
) -> None:
    scene, cell, valid = row
    generator = torch.Generator().manual_seed(seed)
    cells = cell.copy()
    for n in range(1, len(scene)):  # frames of two cells where a scene has two tokens side by side
        if cell[n] == 0 and cell[n - 1] == 0 and scene[n] == scene[n - 1] and cells[n - 1] == 0 and n % 2:
            cells[n] = 1
    embeds_BNH = torch.randn(1, len(scene), 16, generator=generator).to(dtype)
    inputs = (torch.tensor([scene]), torch.tensor([cells]))
    asked = torch.tensor([scene]).eq(-2) & torch.tensor([valid])
    out_BS = embedding_relevance(embeds_BNH, *inputs, asked, MAX_SCENES)
    if sum(c >= 0 for c in cells) > 1:  # a single token is all that the video has in common: nothing is left of it
        check_scores(out_BS, expected_embedding(embeds_BNH[0], scene, cells, valid))


@given(
    shapes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=4),
    cells=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_rows_of_a_batch_fit_as_they_do_alone(shapes: list[tuple[int, int]], cells: int, seed: int) -> None:
    """Row by row, as on the host, and all at once, as on a device; rows without video or question among them."""
    length = 1 + max(frames * cells + words for frames, words in shapes)
    cell, frame = torch.full((len(shapes), length), -1), torch.full((len(shapes), length), -2)
    scene, asked = torch.full_like(cell, -2), torch.zeros(len(shapes), length, dtype=torch.bool)
    for row, (frames, words) in enumerate(shapes):
        video = slice(1, 1 + frames * cells)
        cell[row, video] = torch.arange(cells).repeat(frames)
        frame[row, video] = torch.arange(frames).repeat_interleave(cells)
        scene[row, video] = frame[row, video] // 2
        frame[row, 0] = scene[row, 0] = -1
        asked[row, video.stop : video.stop + words] = True
    embeds = torch.randn(len(shapes), length, 16, generator=torch.Generator().manual_seed(seed))
    together = embedding_relevance(embeds, scene, cell, asked, 4, frame_BN=frame)
    for row in range(len(shapes)):
        one = slice(row, row + 1)
        alone = embedding_relevance(embeds[one], scene[one], cell[one], asked[one], 4, frame_BN=frame[one])
        torch.testing.assert_close(together[one], alone)
    at_W = (asked & (cell >= 0).any(1, keepdim=True)).flatten().nonzero()[:, 0]
    if len(at_W):
        video, flat = VideoTokens.of(frame, cell), embeds.flatten(0, 1)
        mean = torch.stack([row[c >= 0].mean(0) for row, c in zip(embeds, cell, strict=True)]).nan_to_num()
        given = (flat[at_W], (at_W // length).numpy(), flat)
        by_rows = row_fits(*given, video, mean)
        at_once = batch_fit(*given, video.at_T, video.frame_T, video.row_F, mean)
        torch.testing.assert_close(at_once, by_rows, atol=1e-5, rtol=1e-4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frame_fit, "here", lambda x: False)
            for values in (2**24, 2 * frames * cells * words + 16):
                patch.setattr(frame_fit, "DEVICE_FITS", values)
                torch.testing.assert_close(row_fits(*given, video, mean), by_rows, atol=1e-5, rtol=1e-4)


def test_embedding_relevance_finds_the_scene_that_shows_what_is_asked() -> None:
    video = torch.randn(3 * CHUNK, 32)
    scene = [-1, *[n * 3 // len(video) for n in range(len(video))], -2, -2]
    cell = [-1, *[0] * len(video), -1, -1]
    question = video[2 * CHUNK + 5] * 7  # scene 2 holds the very same direction
    embeds_BNH = torch.cat([torch.zeros(1, 32), video, question[None], question[None]])[None]
    asked = torch.tensor([scene]) == -2
    score_BS = embedding_relevance(embeds_BNH, torch.tensor([scene]), torch.tensor([cell]), asked, MAX_SCENES)
    assert score_BS[0, :3].argmax() == 2
    assert score_BS[0, 2] > 0.99


def test_words_that_fit_every_scene_alike_have_no_say() -> None:
    """A word that all scenes show the same amount of cannot drown the one that tells them apart."""
    generator = torch.Generator().manual_seed(3)
    ground, named = torch.zeros(32), torch.zeros(32)
    ground[0], named[1] = 5.0, 1.0
    video = ground + 0.3 * torch.randn(40, 32, generator=generator)
    video[10:20] += 2 * named
    filler = [torch.randn(32, generator=generator) for _ in range(6)]
    embeds_BNH = torch.cat([video, torch.stack([*filler, named])])[None]
    scene = [*[n // 10 for n in range(40)], *[-2] * 7]
    score_BS = embedding_relevance(
        embeds_BNH,
        torch.tensor([scene]),
        torch.tensor([[*[0] * 40, *[-1] * 7]]),
        torch.tensor([scene]) == -2,
        MAX_SCENES,
    )
    assert score_BS[0, :4].argmax() == 1


def expected_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: float,
    scene: list[int],
    cell: list[int],
    valid: list[bool],
    asked: list[bool],
) -> list[float]:
    """The full attention matrix in fp64, then means over heads, question and a scene's tokens.

    A row in front of the video's last token sees all keys up to there.
    """
    ratio = q.shape[0] // k.shape[0]
    logits = torch.einsum("aid,ajd->aij", q.double(), k.double().repeat_interleave(ratio, 0)) * scale
    length = len(scene)
    last = max((n for n, c in enumerate(cell) if c >= 0), default=0)
    seen = torch.ones(length, length).tril().bool()
    seen[:last] = seen[last]
    seen &= torch.tensor(valid)
    weight = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    question = [n for n, flag in enumerate(asked) if flag and valid[n]]
    answers = max((n for n, flag in enumerate(valid) if flag), default=-1)
    if question and cell[answers] < 0:
        question = sorted({*question, answers})
    out = []
    for number in range(max(scene) + 1):
        tokens = [n for n, s in enumerate(scene) if s == number and cell[n] >= 0]
        out.append(float(weight[:, question][:, :, tokens].mean()) if question else 0.0)
    return out


@given(row=rows(), shape=heads((torch.float32,)))
def test_attention_relevance_is_the_mean_attention(row: tuple[list[int], list[int], list[bool]], shape: Heads) -> None:
    scene, cell, valid = row
    q, k, _ = shape.tensors(1, len(scene))
    for asked in ([s == -2 and ok for s, ok in zip(scene, valid, strict=True)], [s == -1 for s in scene]):
        expected = expected_attention(q[0], k[0], 0.2, scene, cell, valid, asked)
        out_BS = attention_relevance(
            q,
            k,
            torch.tensor([scene]),
            torch.tensor([cell]),
            torch.tensor([asked]) & torch.tensor([valid]),
            torch.tensor([valid]),
            0.2,
            MAX_SCENES,
        )
        check_scores(out_BS, expected)


def test_attention_relevance_of_a_long_question() -> None:
    scene = [-1, 0, 0, 1, 1, 1] + [-2] * (2 * ROWS + 3)
    cell = [-1, 0, 0, 0, 0, 0] + [-1] * (2 * ROWS + 3)
    q, k, _ = Heads(2, 2, 16, torch.float32, 3).tensors(1, len(scene))
    asked = [s == -2 for s in scene]
    expected = expected_attention(q[0], k[0], 0.3, scene, cell, [True] * len(scene), asked)
    inputs = (torch.tensor([scene]), torch.tensor([cell]), torch.tensor([asked]))
    check_scores(attention_relevance(q, k, *inputs, None, 0.3, 6), expected)


def test_rows_without_video_have_no_scene() -> None:
    scene, cell = torch.full((1, 4), -2), torch.full((1, 4), -1)
    q, k, _ = Heads(1, 2, 8, torch.float32, 0).tensors(1, 4)
    for out_BS in (
        embedding_relevance(torch.randn(1, 4, 8), scene, cell, scene == -2, 3),
        attention_relevance(q, k, scene, cell, scene == -2, None, 1.0, 3),
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
