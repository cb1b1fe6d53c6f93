"""Training batches of the decoder, made as training goes: videos, questions, and what there is to find in a video.

Legend: B videos, F frames of the language model, V video tokens, Q questions, R rows of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from alignment import IGNORE
from forward import USUAL, Grid, patchify
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from untrained import MERGE, PATCH, TURN_END, VISION_END

from segmo.sceneqa.backgrounds import COLOURS, PAIRS, TEXTURES
from segmo.sceneqa.busy import fill_scenes, render_busy
from segmo.sceneqa.glyphs import SHAPES, Digits
from segmo.sceneqa.questions import KINDS, Question, choose_questions
from segmo.sceneqa.render import PICTURES, render_with_places
from segmo.sceneqa.script import Scene, write_script

ROWS = 8  # end of vision, five words, end of turn, answer
FIRST_DIGIT, LAST_WORD, LAST = 3, 5, 6  # rows: the first digit of *order*; the fifth word; the one that answers


@dataclass(frozen=True)
class Notes:
    """What a video token should know beyond what its frame shows.

    Attributes:
        before: colour and texture (indices) of the scene before, IGNORE in the first scene, (B, F, 2).
        arrives: the digit of a scene is seen here for the first time, at its top left corner, (B, V) bool.
    """

    before: Tensor
    arrives: Tensor


@dataclass(frozen=True)
class Batch:
    """B videos of F frames and what is asked about them.

    Attributes:
        patches: (B * F, patches, pixels of a patch).
        frames: F.
        question_ids: (B, Q, ROWS).
        target, kind: token id of the answer, and index into KINDS; -1 for a row that is not asked, (B, Q).
        find: frames that a question is about, (B, Q, F) bool.
        read: frames that show its answer, (B, Q, F) bool; none where it takes more than one look.
        named: for rows FIRST_DIGIT and LAST_WORD the frames that show the digit of that row, (B, Q, 2, F) bool.
        caption: ids of colour, texture, digit and shape of each frame, (B * F, 4).
        key: frames with something new (a scene's first, a digit's first, a flash), (B, F) bool.
        notes: see :class:`Notes`.
        grid: tokens of a frame.
    """

    patches: Tensor
    frames: int
    question_ids: Tensor
    target: Tensor
    kind: Tensor
    find: Tensor
    read: Tensor
    named: Tensor
    caption: Tensor
    key: Tensor
    notes: Notes
    grid: Grid = USUAL


def encode_question(tokenizer: PreTrainedTokenizerFast, question: Question) -> list[int]:
    """Token ids of the text after the video and of the answer, ROWS of them."""
    words = [VISION_END, *question.text.split(), TURN_END, question.answer]
    return [int(number) for number in tokenizer.convert_tokens_to_ids(words)]


def _frames(script: Sequence[Scene]) -> int:
    return script[-1].start + script[-1].length


def _captions(script: Sequence[Scene], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Words that describe each frame, (F, 4), and the frames with something new, (F,)."""
    caption = torch.full((_frames(script), 4), IGNORE)
    key = torch.zeros(_frames(script), dtype=torch.bool)
    for scene in script:
        span = slice(scene.start, scene.start + scene.length)
        caption[span, :2] = torch.tensor(tokenizer.convert_tokens_to_ids(list(PAIRS[scene.pair])))
        key[scene.start] = True
        if scene.digit >= 0:
            caption[_digit_seen(scene), 2] = int(tokenizer.convert_tokens_to_ids(str(scene.digit)))
            key[scene.start + scene.seen[0]] = True
        if scene.shape >= 0:
            caption[scene.start + scene.flash, 3] = int(tokenizer.convert_tokens_to_ids(SHAPES[scene.shape]))
            key[scene.start + scene.flash] = True
    return caption, key


def _film(
    script: tuple[Scene, ...], digits: Digits, grid: Grid, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures of a script, and the digit's cell in each frame, shown or not."""
    if grid == USUAL:
        pictures, places = render_with_places(script, digits, rng)
        top, left = (places[::PICTURES] // (PATCH * MERGE)).T
        return pictures, top * grid.columns + left
    size = (grid.rows, grid.columns)
    busy = fill_scenes(script, size, rng)
    return render_busy(busy, size, digits, rng), np.concatenate([scene.path for scene in busy])


def _notes(script: Sequence[Scene], cell_F: NDArray[np.int64], cells: int) -> tuple[Tensor, Tensor]:
    """``before``, (F, 2), and ``arrives``, (V,), of one video."""
    before = torch.full((_frames(script), 2), IGNORE)
    arrives = torch.zeros(_frames(script) * cells, dtype=torch.bool)
    for number, scene in enumerate(script):
        if number:
            colour, texture = PAIRS[script[number - 1].pair]
            pair = torch.tensor([tuple(COLOURS).index(colour), TEXTURES.index(texture)])
            before[scene.start : scene.start + scene.length] = pair
        if scene.digit >= 0:
            frame = scene.start + scene.seen[0]
            arrives[frame * cells + int(cell_F[frame])] = True
    return before, arrives


def _digit_seen(scene: Scene) -> slice:
    return slice(scene.start + scene.seen[0], scene.start + scene.seen[1])


def _mark(question: Question, script: Sequence[Scene], find: Tensor, read: Tensor, named: Tensor) -> None:
    """Fill in one question's frames, (F,), (F,) and (2, F)."""
    scenes = [script[number] for number in question.scenes]
    match question.kind:
        case "moment":
            for marks in (find, read):
                marks[scenes[0].start + scenes[0].flash] = True
        case "retrieve":
            for marks in (find, read):
                marks[_digit_seen(scenes[0])] = True
        case "cross-scene":
            find[scenes[0].start : scenes[0].start + scenes[0].length] = True
            read[_digit_seen(scenes[1])] = True
        case "order":
            for scene, marks in zip(scenes, named, strict=True):
                marks[_digit_seen(scene)] = True
                find[_digit_seen(scene)] = True
        case "count":
            for scene in scenes:
                find[_digit_seen(scene)] = True
                for marks in (read, named[1]):
                    marks[scene.start + scene.seen[0]] = True


def make_batch(
    videos: int,
    scenes: int,
    frames: int,
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
    questions: dict[str, int],
    digits: Digits,
    training: bool = True,
    grid: Grid = USUAL,
) -> Batch:
    """``videos`` new videos that show ``digits``; outside ``training`` they prefer held-out backgrounds.

    With another ``grid`` than the usual one they are those of the harder sets (:mod:`segmo.sceneqa.busy`), with the
    question behind the video: one in front of it cannot share the work on the video with others.
    """
    total = sum(questions.values())
    ids = torch.zeros(videos, total, ROWS, dtype=torch.long)
    target = torch.full((videos, total), IGNORE)
    kind = torch.full((videos, total), -1)
    find = torch.zeros(videos, total, frames, dtype=torch.bool)
    read, named = torch.zeros_like(find), torch.zeros(videos, total, 2, frames, dtype=torch.bool)
    patches, captions, keys, before, arrives = [], [], [], [], []
    for row in range(videos):
        script = write_script(scenes, frames, training, rng)
        pictures, cell_F = _film(script, digits, grid, rng)
        patches.append(patchify(pictures))
        for parts, part in zip((captions, keys), _captions(script, tokenizer), strict=True):
            parts.append(part)
        for parts, part in zip((before, arrives), _notes(script, cell_F, grid.cells), strict=True):
            parts.append(part)
        for number, question in enumerate(choose_questions(script, questions, rng)):
            ids[row, number] = torch.tensor(encode_question(tokenizer, question))
            target[row, number] = ids[row, number, -1]
            kind[row, number] = KINDS.index(question.kind)
            _mark(question, script, find[row, number], read[row, number], named[row, number])
    notes = Notes(torch.stack(before), torch.stack(arrives))
    marks = (ids, target, kind, find, read, named, torch.cat(captions), torch.stack(keys), notes)
    return Batch(torch.cat(patches), frames, *marks, grid)


def _keep(key_BX: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Indices of all that is key and of a random part of the rest, ascending, equally many in each row."""
    count = max(round(keep * key_BX.shape[1]), int(key_BX.sum(1).max()))
    order_BX = torch.rand(key_BX.shape, generator=generator) + key_BX
    return order_BX.topk(count, dim=1).indices.sort(dim=1).values


def keep_frames(batch: Batch, keep: float, generator: torch.Generator) -> Tensor:
    """Frame dropout: indices of the frames left in, ascending, (B, kept). As if the video came at another rate.

    Frames with something new stay; a random part of the rest is left out.
    """
    return _keep(batch.key, keep, generator)


def keep_tokens(batch: Batch, frame_BF: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Token dropout among the frames that are left: indices of tokens in the whole video, ascending, (B, kept).

    Tokens of frames with something new stay.
    """
    cells = batch.grid.cells
    token_BV = (frame_BF[..., None] * cells + torch.arange(cells)).flatten(1)
    key_BV = batch.key.gather(1, frame_BF).repeat_interleave(cells, dim=1)
    return token_BV.gather(1, _keep(key_BV, keep, generator))
