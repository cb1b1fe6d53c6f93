"""Train SceneQA's Video LLM: python benchmarks/sceneqa/train.py --out out/sceneqa

First the vision tower learns to read single frames (``stills.py``); then the decoder learns to answer questions about
videos that grow from five scenes to sixteen (``curriculum.py``, ``lessons.py``).

Runs on one CPU thread unless told otherwise, logs a JSON line for each report, and goes on from its last checkpoint
when it is started again with the same folder. ``export.py`` turns the folder into the shipped model.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment import Alignment
from batches import Batch, keep_frames, keep_tokens, make_batch
from curriculum import DROPOUT, LEAST_FRAMES, LEAST_TOKENS, LEVELS, MANY, REVIEW, Level
from forward import SHARED_VIDEO, USUAL, Grid, answer_questions, encode_frames
from lessons import CLOCK_LAYER, LOOK_ROWS, NOTE_LAYER, Lessons, kind_weight
from runfolder import RunFolder
from stills import Stills, make_stills, training_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from untrained import TURN_START, VISION_START, build_config, build_model, build_tokenizer, share_direction

from segmo.bfloat16 import multiplies_bfloat16
from segmo.sceneqa.glyphs import load_digits
from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.task import DIFFICULTIES

STILLS = 128  # frames of a batch of stills
EMA = 0.995  # of the weights; the average is what is validated and shipped
REPORT, SAVE, VALIDATE = 25, 50, 250  # updates
STOP_WEIGHT = 0.05  # of the loss of ending after the answer


@dataclass
class State:
    """What a checkpoint holds beside the weights."""

    step: int = 0
    level: int = -1  # -1: single frames
    since: int = 0  # update at which the level started
    accuracy: float = 0.0  # running accuracy of *retrieve*, which decides when a level ends
    seconds: float = 0.0


def schedule(done: float, step: int) -> float:
    """Part of the highest learning rate: linear warm-up, then a cosine down to a twentieth."""
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Trainer:
    """The model, its optimiser, and the random streams of a run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder, self.state = args, RunFolder(Path(args.out)), State()
        busy = DIFFICULTIES[args.difficulty].busy
        self.grid = USUAL if busy is None else Grid(*busy)
        self.bfloat16 = multiplies_bfloat16()
        self.tokenizer = build_tokenizer()
        config = build_config(self.tokenizer, args.hidden, args.layers, args.vision_hidden, args.vision_depth)
        self.model: Any = build_model(config, args.seed)
        self.model.set_attn_implementation({"text_config": SHARED_VIDEO})
        self.average: Any = copy.deepcopy(self.model).requires_grad_(False)
        self.alignment, self.lessons = Alignment(self.tokenizer), Lessons(args.hidden)
        self.digits = training_digits(args.seed)
        self.optimiser = self._new_optimiser()
        ids: Any = self.tokenizer.convert_tokens_to_ids
        self.sinks = torch.tensor(ids([TURN_START, VISION_START]))

    def _new_optimiser(self) -> torch.optim.Optimizer:
        """For single frames, or for videos; the lessons' probes learn in the latter."""
        parts = [*self.model.parameters(), *(self.lessons.parameters() if self.state.level >= 0 else ())]
        return torch.optim.AdamW(parts, self.args.lr, betas=(0.9, 0.98), weight_decay=0.05)

    def still_loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Reading single frames."""
        return self.read_stills(make_stills(STILLS, self.tokenizer, rng, self.digits, self.grid), self.grid)

    def read_stills(self, stills: Stills, grid: Grid) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracy of the words for what each frame shows."""
        words = self.model.model.language_model.embed_tokens.weight
        loss, right = self.alignment.loss(words, encode_frames(self.model, stills.patches, grid), stills.caption)
        return loss, {"align": float(loss.detach()), **right}

    def video_loss(self, model: Any, batch: Batch, keep: tuple[float, float]) -> tuple[Tensor, dict[str, float]]:
        """Answering questions about videos, of whose frames, and of whose tokens, ``keep`` are left in.

        The vision tower is left as it is.
        """
        generator = torch.Generator().manual_seed(self.state.step)
        videos = len(batch.target)
        frame_BF = keep_frames(batch, keep[0], generator)
        row = torch.arange(videos)[:, None]
        with torch.no_grad():
            patches = batch.patches.unflatten(0, (videos, -1))[row, frame_BF].flatten(0, 1)
            features = encode_frames(model, patches, self.grid)
        caption = batch.caption.unflatten(0, (videos, -1))[row, frame_BF].flatten(0, 1)
        align, right = self.alignment.loss(model.model.language_model.embed_tokens.weight, features, caption)
        kept = keep_tokens(batch, frame_BF, keep[1], generator)
        place = torch.full((videos, batch.frames), -1).scatter_(
            1, frame_BF, torch.arange(frame_BF.shape[1]).expand_as(frame_BF)
        )
        cells = self.grid.cells
        inside = place.gather(1, kept // cells) * cells + kept % cells  # index among the frames that were encoded
        flat = features.unflatten(0, (videos, -1)).flatten(1, 2)
        flat = flat.gather(1, inside[..., None].expand(-1, -1, flat.shape[-1]))
        asked = (self.sinks, batch.question_ids, LOOK_ROWS, (CLOCK_LAYER, NOTE_LAYER), self.grid)
        answered = answer_questions(model, flat, batch.frames, kept, *asked)
        taught = self.lessons(answered, batch, kept)
        answer, stop = self.answer_loss(answered.logits, batch.target, batch.kind)
        figures = {"align": float(align.detach()), **right, **taught.figures, "answer": float(answer.detach())}
        correct = answered.logits[:, :, 0].argmax(-1) == batch.target
        for number, kind in enumerate(KINDS):
            if (batch.kind == number).any():
                figures[kind] = float(correct[batch.kind == number].float().mean())
        args = self.args
        loss = answer + STOP_WEIGHT * stop + args.align * align + args.look * taught.looks + args.note * taught.notes
        return loss, figures

    def answer_loss(self, logits: Tensor, target: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted loss of the answers that are asked (kind >= 0), and that of ending after them.

        Args:
            logits: of the answer and of what follows it, (..., 2, vocabulary).
            target, kind: (...).
        """
        asked = kind >= 0
        weight = kind_weight(kind[asked])
        each = cross_entropy(logits[..., 0, :][asked].float(), target[asked], reduction="none")
        end = torch.full((int(asked.sum()),), self.tokenizer.eos_token_id)
        return (weight * each).sum() / weight.sum(), cross_entropy(logits[..., 1, :][asked].float(), end)

    def _draw_batch(self, rng: np.random.Generator) -> tuple[Batch, tuple[float, float]]:
        """A batch of this level or, for review, of an earlier one; and how much of it is left in."""
        number = self.state.level
        if number > 0 and rng.random() < REVIEW:
            number = int(rng.integers(0, number))
        level = LEVELS[number]
        keep = (1.0, 1.0)
        if rng.random() < DROPOUT:
            tokens = 1.0 if rng.random() < 0.5 else float(rng.uniform(LEAST_TOKENS, 1.0))
            keep = (float(rng.uniform(LEAST_FRAMES, 1.0)), tokens)
        return self._make(level, rng), keep

    def _make(self, level: Level, rng: np.random.Generator) -> Batch:
        size = (level.videos, level.scenes, level.frames)
        return make_batch(*size, self.tokenizer, rng, level.questions, self.digits, grid=self.grid)

    def draw_loss(self, rng: np.random.Generator) -> tuple[float, Tensor, dict[str, float]]:
        """Learning rate, loss and figures of the next update."""
        state, args = self.state, self.args
        if state.level < 0:
            return args.lr * schedule(state.step / args.stills, state.step), *self.still_loss(rng)
        step = state.step - args.stills
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss, figures = self.video_loss(self.model, *self._draw_batch(rng))
        return args.decoder_lr * schedule(step / args.steps, step), loss, figures

    def train_step(self) -> dict[str, float]:
        """One update; what it sees depends on seed and update alone, so a resumed run is an unbroken one."""
        state = self.state
        rate, loss, figures = self.draw_loss(np.random.default_rng([self.args.seed, state.step]))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        decay = min(EMA, (state.step + 1) / (state.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        state.step += 1
        self._advance(figures)
        return figures

    def _advance(self, figures: dict[str, float]) -> None:
        state = self.state
        if state.level < 0:
            if state.step >= self.args.stills:
                self._start_videos()
            return
        state.accuracy += 0.05 * (figures.get("retrieve", state.accuracy) - state.accuracy)
        level = LEVELS[state.level]
        if state.step - state.since >= level.most or state.accuracy >= level.enough:
            state.level, state.since, state.accuracy = state.level + 1, state.step, 0.0

    def _start_videos(self) -> None:
        """From single frames to videos: with the average of the tower so far, and a direction that all words share, so
        that text looks at text from the first update on (see ``untrained.py``)."""
        self.model.load_state_dict(self.average.state_dict())
        share_direction(self.model, self.args.seed)
        self.average.load_state_dict(self.model.state_dict())
        self.state.level, self.state.since = 0, self.state.step
        self.optimiser = self._new_optimiser()

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Accuracy of the averaged weights on held-out digits and backgrounds at two levels."""
        found: dict[str, Any] = {}
        for level in (LEVELS[1], LEVELS[3]):
            rng = np.random.default_rng(7)  # the same videos every time
            sums: dict[str, list[float]] = {}
            for _ in range(5):
                held_out = load_digits("validation")
                size = (4, level.scenes, level.frames)
                batch = make_batch(*size, self.tokenizer, rng, MANY, held_out, training=False, grid=self.grid)
                for name, value in self.video_loss(self.average, batch, (1.0, 1.0))[1].items():
                    sums.setdefault(name, []).append(value)
            found[f"{level.scenes}x{level.frames}"] = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
        return found

    def save(self) -> None:
        """Write the checkpoint."""
        self.folder.save(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "lessons": self.lessons.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "state": vars(self.state),
                "args": vars(self.args),
            }
        )

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        record = self.folder.load()
        if record is not None:
            self.model.load_state_dict(record["model"])
            self.average.load_state_dict(record["average"])
            self.lessons.load_state_dict(record["lessons"])
            self.state = State(**record["state"])
            self.optimiser = self._new_optimiser()
            self.optimiser.load_state_dict(record["optimiser"])

    def run(self) -> None:
        """Train until all updates are done."""
        self.resume()
        self.folder.note_start(self.state.step)
        self.folder.cut_log(self.state.step)
        start, before = time.perf_counter(), self.state.seconds
        recent: dict[str, list[float]] = {}
        while self.state.step < self.args.stills + self.args.steps:
            for name, value in self.train_step().items():
                recent.setdefault(name, []).append(value)
            self.state.seconds = before + time.perf_counter() - start
            if self.state.step % REPORT == 0:
                means = {name: round(sum(values) / len(values), 4) for name, values in recent.items()}
                self.folder.log({**vars(self.state), "lr": self.optimiser.param_groups[0]["lr"], "train": means})
                recent = {}
            if self.state.step % VALIDATE == 0 and self.state.level >= 0:
                self.folder.log({"step": self.state.step, "level": self.state.level, "validation": self.validate()})
            if self.state.step % SAVE == 0:
                self.save()
        self.save()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sceneqa", help="folder for checkpoint and log")
    parser.add_argument("--stills", type=int, default=1750, help="updates on single frames")
    parser.add_argument("--steps", type=int, default=5000, help="updates on videos")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--difficulty", default="standard", choices=tuple(DIFFICULTIES), help="what frames look like")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--decoder-lr", type=float, default=2e-3)
    parser.add_argument("--align", type=float, default=0.2, help="weight of the alignment loss on videos")
    parser.add_argument("--look", type=float, default=0.3, help="weight of the guided looks")
    parser.add_argument("--note", type=float, default=0.3, help="weight of the notes")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vision-hidden", type=int, default=96)
    parser.add_argument("--vision-depth", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()
