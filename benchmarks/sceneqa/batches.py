"""Training batches, made as training goes: videos of one level of the curriculum, their questions, token
dropout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from forward import CELLS, patchify
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from untrained import TURN_END, VISION_END

from segmo.sceneqa.backgrounds import PAIRS
from segmo.sceneqa.glyphs import SHAPES, load_digits
from segmo.sceneqa.questions import KINDS, Question, choose_questions
from segmo.sceneqa.render import render
from segmo.sceneqa.script import Scene, write_script

IGNORE = -100
# Questions of each kind asked about one video of a batch; kinds that run short are filled up with the others.
QUESTIONS = {"retrieve": 6, "moment": 4, "order": 4, "count": 4, "cross-scene": 5}
ROWS = 8  # end of vision, five words, end of turn, answer


@dataclass(frozen=True)
class Batch:
    """B videos of F frames. ``target`` is the answer; ``kind`` an index into KINDS, -1 for a row that is not
    asked.

    Attributes:
        patches: (B * F, patches, pixels of a patch).
        frames: F.
        question_ids: (B, Q, ROWS).
        target, kind: (B, Q).
        where: frames that show a question's answer, (B, Q, F) bool.
        caption: ids of the colour, the texture, the digit and the shape in each frame, IGNORE for none, (B *
        F, 4).
        key: frames with something new (a scene's first, a digit's first, a flash), (B, F) bool.
    """

    patches: Tensor
    frames: int
    question_ids: Tensor
    target: Tensor
    kind: Tensor
    where: Tensor
    caption: Tensor
    key: Tensor


def encode_question(tokenizer: PreTrainedTokenizerFast, question: Question) -> list[int]:
    """Token ids of the text after the video and of the answer, ROWS of them."""
    words = [VISION_END, *question.text.split(), TURN_END, question.answer]
    return [int(number) for number in tokenizer.convert_tokens_to_ids(words)]


def _captions(script: tuple[Scene, ...], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Words that describe each frame, (F, 4), and the frames with something new, (F,)."""
    frames = script[-1].start + script[-1].length
    caption = torch.full((frames, 4), IGNORE)
    key = torch.zeros(frames, dtype=torch.bool)
    for scene in script:
        span = slice(scene.start, scene.start + scene.length)
        caption[span, :2] = torch.tensor(tokenizer.convert_tokens_to_ids(list(PAIRS[scene.pair])))
        key[scene.start] = True
        if scene.digit >= 0:
            caption[scene.start + scene.seen[0] : scene.start + scene.seen[1], 2] = int(
                tokenizer.convert_tokens_to_ids(str(scene.digit))
            )
            key[scene.start + scene.seen[0]] = True
        if scene.shape >= 0:
            caption[scene.start + scene.flash, 3] = int(tokenizer.convert_tokens_to_ids(SHAPES[scene.shape]))
            key[scene.start + scene.flash] = True
    return caption, key


def _evidence(scene: Scene, kind: str) -> slice:
    """Frames of one of a question's scenes that show what is asked for: the flash, or the digit."""
    if kind == "moment":
        return slice(scene.start + scene.flash, scene.start + scene.flash + 1)
    return slice(scene.start + scene.seen[0], scene.start + scene.seen[1])


def make_batch(
    videos: int,
    scenes: int,
    frames: int,
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
    questions: dict[str, int] = QUESTIONS,
    training: bool = True,
) -> Batch:
    """``videos`` new videos; ``training`` chooses the digits and backgrounds of the train or the validation
    split."""
    total = sum(questions.values())
    ids = torch.zeros(videos, total, ROWS, dtype=torch.long)
    target = torch.full((videos, total), IGNORE)
    kind = torch.full((videos, total), -1)
    where = torch.zeros(videos, total, frames, dtype=torch.bool)
    digits = load_digits("train" if training else "validation")
    patches, captions, keys = [], [], []
    for row in range(videos):
        script = write_script(scenes, frames, training, rng)
        patches.append(patchify(render(script, digits, rng)))
        caption, key = _captions(script, tokenizer)
        captions.append(caption)
        keys.append(key)
        chosen = choose_questions(script, questions, rng)
        encoded = torch.tensor([encode_question(tokenizer, question) for question in chosen], dtype=torch.long).reshape(
            -1, ROWS
        )
        ids[row, : len(chosen)] = encoded
        target[row, : len(chosen)] = encoded[:, -1]
        for number, question in enumerate(chosen):
            for scene in (script[index] for index in question.scenes):
                where[row, number, _evidence(scene, question.kind)] = True
        kind[row, : len(chosen)] = torch.tensor([KINDS.index(question.kind) for question in chosen], dtype=torch.long)
    return Batch(torch.cat(patches), frames, ids, target, kind, where, torch.cat(captions), torch.stack(keys))


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
    token_BV = (frame_BF[..., None] * CELLS + torch.arange(CELLS)).flatten(1)
    key_BV = batch.key.gather(1, frame_BF).repeat_interleave(CELLS, dim=1)
    return token_BV.gather(1, _keep(key_BV, keep, generator))
