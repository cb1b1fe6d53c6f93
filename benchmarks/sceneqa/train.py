"""Train SceneQA's Video LLM: python benchmarks/sceneqa/train.py --out out/sceneqa

Two losses. *answer*: cross-entropy of each question's answer. *align*: vision features and the words for
what they show point in the same direction, as the features of a vision encoder trained with text do. The
first steps are alignment alone; then videos grow from three scenes to sixteen as the answers get right.

Runs on one CPU thread unless told otherwise, logs a JSON line for each report, and goes on from its last
checkpoint when it is started again with the same folder. ``export.py`` turns the folder into the shipped
model.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import IGNORE, QUESTIONS, Batch, keep_frames, keep_tokens, make_batch
from forward import CELLS, SHARED_VIDEO, answer_logits, encode_frames
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from untrained import TURN_START, VISION_START, build_config, build_model, build_tokenizer, share_direction

from segmo.sceneqa.backgrounds import COLOURS, HELD_OUT, TEXTURES
from segmo.sceneqa.glyphs import SHAPES
from segmo.sceneqa.questions import DIGITS, KINDS

NEVER_SHOWN = torch.zeros(len(COLOURS), len(TEXTURES), dtype=torch.bool)
NEVER_SHOWN.view(-1)[list(HELD_OUT)] = True
GENERIC_COSINE = 0.3  # a frame shows "a digit" or "a shape" where a token's cosine with that word is above this
# Weight of a kind's questions. A flash is in one frame of many: without it, it was neither looked at nor read.
KIND_WEIGHT = {"retrieve": 1.0, "moment": 4.0, "order": 1.0, "count": 1.0, "cross-scene": 1.0}
EMBEDDINGS = "model.language_model.embed_tokens.weight"
ALIGN_SCALE = 12.0  # cosines are multiplied by this before the softmax
EMA = 0.995  # of the weights; the average is what is validated and shipped
REPORT, VALIDATE = 25, 200  # steps


@dataclass(frozen=True)
class Level:
    """Videos of one level of the curriculum; the next one starts at ``enough`` accuracy or after ``most``
    steps.

    The accuracy is that of *retrieve*, and on the level of alignment alone that of picking a frame's digit.
    """

    scenes: int
    frames: int
    videos: int
    questions: dict[str, int]
    most: int
    enough: float


FIRST = {"retrieve": 3, "moment": 5}
FEW = {"retrieve": 4, "moment": 3, "order": 2, "count": 2, "cross-scene": 3}
LEVELS = (
    Level(5, 8, 16, FIRST, 300, 0.65),
    Level(5, 16, 10, FEW, 200, 0.72),
    Level(8, 32, 8, QUESTIONS, 300, 0.78),
    Level(12, 64, 5, QUESTIONS, 300, 0.80),
    Level(16, 128, 3, QUESTIONS, 10**9, 2.0),
)
ALIGN = Level(6, 12, 14, {}, 1500, 0.82)
LOOK_LAYER = 1  # decoder layer whose attention is guided to the frames that show the answer
DROPOUT = 0.7  # of the batches lose frames, and half of those tokens too


@dataclass
class State:
    """What a checkpoint holds beside the weights."""

    step: int = 0
    level: int = -1  # -1: alignment alone
    since: int = 0  # step at which the level started
    accuracy: float = 0.0  # running accuracy that decides when the level ends
    seconds: float = 0.0


class Trainer:
    """The model, its optimiser, and the random streams of a run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out, self.state = args, Path(args.out), State()
        self.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = build_tokenizer()
        config = build_config(self.tokenizer, args.hidden, args.layers, args.vision_hidden, args.vision_depth)
        self.model = build_model(config, args.seed)
        self.model.set_attn_implementation({"text_config": SHARED_VIDEO})
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.02)
        ids: Any = self.tokenizer.convert_tokens_to_ids
        self.sinks = torch.tensor(ids([TURN_START, VISION_START]))
        self.groups = [torch.tensor(ids(list(words))) for words in (COLOURS, TEXTURES, DIGITS, SHAPES)]

        self.generic = torch.tensor(ids(["digit", "shape"]))

    def align_loss(self, model: Any, features_FCH: Tensor, caption: Tensor) -> tuple[Tensor, list[float]]:
        """Loss of picking each frame's words by cosine, and the accuracy of that for each group of words."""
        words = model.model.language_model.embed_tokens.weight
        unit = normalize(features_FCH, dim=-1)
        loss, right = features_FCH.new_zeros(()), []
        for group, ids in enumerate(self.groups):
            known = caption[:, group] != IGNORE
            logits = ALIGN_SCALE * unit[known] @ normalize(words[ids], dim=-1).T  # (frames, C, words)
            # A background is in every cell, a digit or a shape in some.
            logits = logits.mean(1) if group < 2 else logits.logsumexp(1)
            if group < 2 and torch.is_grad_enabled():
                # A pair that training never shows is no wrong answer either: otherwise a texture would be unlearnt
                # for the colours it is never seen in.
                never = NEVER_SHOWN if group else NEVER_SHOWN.T
                other = (caption[:, 1 - group, None] == self.groups[1 - group]).long().argmax(1)
                logits = logits.masked_fill(never[other], -torch.inf)
            target = (caption[known, group, None] == ids).long().argmax(1)
            if len(target):
                loss = loss + cross_entropy(logits, target)
                right.append(float((logits.argmax(1) == target).float().mean()))
            else:
                right.append(float("nan"))
        for group, word in zip((2, 3), self.generic, strict=True):
            cosine = (unit @ normalize(words[word], dim=-1)).amax(1)
            shown = (caption[:, group] != IGNORE).float()
            loss = loss + binary_cross_entropy_with_logits(ALIGN_SCALE * (cosine - GENERIC_COSINE), shown)
        return loss / len(self.groups), right

    def run_batch(
        self, model: Any, batch: Batch, keep: tuple[float, float], answers: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and figures of one batch, of whose frames, and of whose tokens, ``keep`` are left in."""
        generator = torch.Generator().manual_seed(self.state.step)
        videos = len(batch.target)
        frame_BF = keep_frames(batch, keep[0], generator)
        row = torch.arange(videos)[:, None]
        features = encode_frames(model, batch.patches.unflatten(0, (videos, -1))[row, frame_BF].flatten(0, 1))
        caption = batch.caption.unflatten(0, (videos, -1))[row, frame_BF].flatten(0, 1)
        align, right = self.align_loss(model, features, caption)
        figures = {"align": float(align.detach())}
        figures |= dict(zip(("colour", "texture", "digit", "shape"), right, strict=True))
        if not answers:
            return align, figures
        kept = keep_tokens(batch, frame_BF, keep[1], generator)
        place = torch.full((videos, batch.frames), -1).scatter_(
            1, frame_BF, torch.arange(frame_BF.shape[1]).expand_as(frame_BF)
        )
        inside = place.gather(1, kept // CELLS) * CELLS + kept % CELLS  # index among the frames that were encoded
        flat = features.unflatten(0, (videos, -1)).flatten(1, 2)
        flat = flat.gather(1, inside[..., None].expand(-1, -1, flat.shape[-1]))
        logits, looks = answer_logits(model, flat, batch.frames, kept, self.sinks, batch.question_ids, LOOK_LAYER)
        asked = batch.kind >= 0
        weight = torch.tensor([KIND_WEIGHT[kind] for kind in KINDS])[batch.kind[asked]]
        each = cross_entropy(logits[:, :, 0][asked], batch.target[asked], reduction="none")
        answer = (weight * each).sum() / weight.sum()
        stop = cross_entropy(logits[:, :, 1][asked], torch.full((int(asked.sum()),), self.tokenizer.eos_token_id))
        correct = logits[:, :, 0].argmax(-1) == batch.target
        look = self.look_loss(looks, batch, kept)
        figures |= {"look": float(look.detach())}
        figures |= {"answer": float(answer.detach()), "stop": float(stop.detach())}
        for number, kind in enumerate(KINDS):
            mine = batch.kind == number
            if mine.any():
                figures[kind] = float(correct[mine].float().mean())
        return answer + 0.05 * stop + self.args.align * align + self.args.look * look, figures

    def look_loss(self, looks_BQV: Tensor, batch: Batch, kept_BV: Tensor) -> Tensor:
        """Minus log of the attention that a question's last token pays to the frames that show its answer."""
        frame_BV = kept_BV // CELLS
        index = frame_BV[:, None].expand(-1, looks_BQV.shape[1], -1)
        inside = (looks_BQV * batch.where.gather(2, index)).sum(-1)
        known = batch.where.any(-1)
        weight = torch.tensor([KIND_WEIGHT[kind] for kind in KINDS])[batch.kind[known]]
        return -(weight * inside[known].clamp(min=1e-6).log()).sum() / weight.sum()

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to a twentieth."""
        step, total = self.state.step, self.args.steps
        warm = min(1.0, (step + 1) / 100)
        return float(self.args.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))))

    def train_step(self) -> dict[str, float]:
        """One update; videos depend on seed and step alone, so a resumed run sees what an unbroken one
        would."""
        state = self.state
        rng = np.random.default_rng([self.args.seed, state.step])
        level = ALIGN
        if state.level >= 0:
            review = state.level > 0 and rng.random() < self.args.review
            back = int(rng.integers(0, min(state.level, self.args.review_levels))) if review else state.level
            level = LEVELS[back]
        batch = make_batch(level.videos, level.scenes, level.frames, self.tokenizer, rng, level.questions)
        keep = (1.0, 1.0)
        if state.level >= 0 and rng.random() < DROPOUT:
            keep = (float(rng.uniform(0.1, 1.0)), 1.0 if rng.random() < 0.5 else float(rng.uniform(0.3, 1.0)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad()
        loss, figures = self.run_batch(self.model, batch, keep, state.level >= 0)
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
        level = ALIGN if state.level < 0 else LEVELS[state.level]
        now = figures.get("retrieve" if state.level >= 0 else "digit", state.accuracy)
        state.accuracy += 0.05 * (now - state.accuracy)
        if state.step - state.since >= level.most or state.accuracy >= level.enough:
            if state.level < 0:
                self._leave_alignment()
            else:
                state.level, state.since, state.accuracy = state.level + 1, state.step, 0.0

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Accuracy of the averaged weights on held-out digits and backgrounds at two levels."""
        found: dict[str, Any] = {}
        for level in (LEVELS[2], LEVELS[4]):
            rng = np.random.default_rng(7)  # the same videos every time
            sums: dict[str, list[float]] = {}
            for _ in range(4):
                batch = make_batch(4, level.scenes, level.frames, self.tokenizer, rng, QUESTIONS, training=False)
                _, figures = self.run_batch(self.average, batch, (1.0, 1.0), answers=True)
                for name, value in figures.items():
                    sums.setdefault(name, []).append(value)
            found[f"{level.scenes}x{level.frames}"] = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
        return found

    def log(self, record: dict[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def save(self) -> None:
        record = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "state": vars(self.state),
            "args": vars(self.args),
        }
        torch.save(record, self.out / "checkpoint.part")
        (self.out / "checkpoint.part").replace(self.out / "checkpoint.pt")

    def _note_stage(self) -> None:
        """Write down the command and the commit from this update on, for the record that ships with the weights."""
        path = self.out / "stages.json"
        stages = json.loads(path.read_text()) if path.is_file() else []
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
        command = " ".join(["train.py", *sys.argv[1:]])
        stages.append({"from update": self.state.step, "commit": commit.stdout.strip(), "command": command})
        path.write_text(json.dumps(stages, indent=2))

    def start_from(self, path: Path) -> None:
        """Take the vision tower and the word embeddings of another run, past the level of alignment alone."""
        given = torch.load(path, weights_only=True)["model"]
        own = self.model.state_dict()
        taken = {name: given[name] for name in own if "visual" in name or "embed_tokens" in name}
        self.model.load_state_dict({**own, **taken, "lm_head.weight": taken[EMBEDDINGS]})
        self._leave_alignment()

    def _leave_alignment(self) -> None:
        """Give all words a direction in common, so that text looks at text from the first update on (see build)."""
        share_direction(self.model, self.args.seed)
        self.average.load_state_dict(self.model.state_dict())
        self.state.level, self.state.since, self.state.accuracy = 0, self.state.step, 0.0

    def resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.is_file() and self.args.start:
            self.start_from(Path(self.args.start))
        if path.is_file():
            record = torch.load(path, weights_only=True)
            self.model.load_state_dict(record["model"])
            self.average.load_state_dict(record["average"])
            self.optimiser.load_state_dict(record["optimiser"])
            self.state = State(**record["state"])

    def run(self) -> None:
        """Train until ``steps`` or ``minutes`` are over."""
        self.resume()
        self._note_stage()
        start, before = time.perf_counter(), self.state.seconds
        recent: dict[str, list[float]] = {}
        while self.state.step < self.args.steps and self.state.seconds < 60 * self.args.minutes:
            for name, value in self.train_step().items():
                if not math.isnan(value):
                    recent.setdefault(name, []).append(value)
            self.state.seconds = before + time.perf_counter() - start
            if self.state.step % REPORT == 0:
                means = {name: round(sum(values) / len(values), 4) for name, values in recent.items()}
                self.log({**vars(self.state), "lr": self.learning_rate(), "train": means})
                recent = {}
            if self.state.step % VALIDATE == 0:
                self.log({"step": self.state.step, "level": self.state.level, "validation": self.validate()})
                self.save()
        self.save()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sceneqa", help="folder for checkpoint and log")
    parser.add_argument("--start", default="", help="checkpoint whose vision tower and embeddings to start from")
    parser.add_argument("--steps", type=int, default=2500, help="length of the learning rate schedule")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop (and save) after this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--align", type=float, default=0.5, help="weight of the alignment loss")
    parser.add_argument("--look", type=float, default=0.3, help="weight of the guided look")
    parser.add_argument("--review", type=float, default=0.5, help="share of batches from an earlier level")
    parser.add_argument("--review-levels", type=int, default=9, help="how many of the earliest levels those are")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vision-hidden", type=int, default=64)
    parser.add_argument("--vision-depth", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()
