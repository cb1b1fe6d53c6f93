"""Train the shipped model further, on busy frames and thinned videos: benchmarks/sceneqa/further.py --out out/further

Starts from the weights that ship. First the tower reads single frames of all sizes (``stills.py``), then the decoder
answers about videos of all sets (``mixture.py``), whole or as a selection leaves them (``thinning.py``), with the
question behind the video or in front of it (``asked_first.py``). Goes on from its last checkpoint when it is started
again with the same folder; ``export.py --run out/further --to out/further/model`` makes a model of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from asked_first import ASKED_FIRST, answer_asked_first
from batches import Batch, make_batch
from forward import SHARED_VIDEO, answer_questions, encode_frames
from lessons import FIND_LAYER, LOOK_ROWS, NAMED_LAYER, READ_LAYER, kind_weight, look_loss
from mixture import IN_FRONT, QUESTIONS, SOURCES, Plan, draw_plan
from stills import make_stills
from thinning import thin_out
from torch import Tensor
from train import STOP_WEIGHT, Trainer, schedule

from segmo.sceneqa.glyphs import Digits, load_digits
from segmo.sceneqa.model import load_model
from segmo.sceneqa.questions import KINDS

STILL_PATCHES = 6144  # of a batch of single frames, about
CHECKED = 3  # videos of a set, of its full length
WORDS = slice(1, 6)  # of a question's rows

Outcome = tuple[Tensor, dict[str, float]]


class Further(Trainer):
    """The shipped model and its further training."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        shipped = load_model()[0].state_dict()
        self.model.load_state_dict(shipped)
        self.average.load_state_dict(shipped)
        self.state.level = 0

    def _new_optimiser(self) -> torch.optim.Optimizer:
        """Without the lessons' probes: nothing is noted here."""
        return torch.optim.AdamW(self.model.parameters(), self.args.lr, betas=(0.9, 0.98), weight_decay=0.05)

    def draw_loss(self, rng: np.random.Generator) -> tuple[float, Tensor, dict[str, float]]:
        """Learning rate, loss and figures of the next update."""
        step, args = self.state.step, self.args
        if step < args.stills:
            grid = SOURCES[int(rng.choice(len(SOURCES), p=[source.share for source in SOURCES]))].grid
            stills = make_stills(STILL_PATCHES // (4 * grid.cells), self.tokenizer, rng, self.digits, grid)
            loss, right = self.read_stills(stills, grid)
            figures = {f"{grid.cells} tokens, {name}": value for name, value in right.items()}
            return args.lr * schedule(step / args.stills, step), loss, figures
        done = step - args.stills
        plan = draw_plan(rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss, figures = self.answer(self.model, plan, rng, self.digits, training=True)
        return args.decoder_lr * schedule(done / args.steps, done), loss, figures

    def answer(
        self, model: Any, plan: Plan, rng: np.random.Generator, digits: Digits, training: bool = False
    ) -> Outcome:
        """New videos as the plan says and what ``model`` makes of them; the tower is left as it is."""
        grid = plan.source.grid
        asked = IN_FRONT if plan.first else QUESTIONS
        size = (plan.videos, plan.scenes, plan.frames)
        batch = make_batch(*size, self.tokenizer, rng, asked, digits, training=training, grid=grid)
        with torch.no_grad():
            features = encode_frames(model, batch.patches, grid).float().unflatten(0, (plan.videos, -1)).flatten(1, 2)
        run = self._in_front if plan.first else self._behind
        loss, right, kind = run(model, plan, batch, features, rng)
        where = f"{plan.source.name}{', asked first' if plan.first else ''}"
        figures = {"loss": float(loss.detach())}
        for number, name in enumerate(KINDS):
            if bool((kind == number).any()):
                figures[f"{where}: {name}"] = float(right[kind == number].float().mean())
        return loss, figures

    def _thinned(self, model: Any, features_VH: Tensor, plan: Plan, question_ids_RL: Tensor | None) -> Tensor:
        """Indices of the video tokens that are left, (R, kept); without a question one row."""
        words = torch.zeros(1, 5, features_VH.shape[1])
        if question_ids_RL is not None:
            words = model.model.language_model.embed_tokens(question_ids_RL[:, WORDS]).detach().float()
        if plan.kept == len(features_VH):
            return torch.arange(plan.kept).expand(len(words), -1)
        return thin_out(features_VH, plan.source.grid.cells, plan.kept, words)

    def _behind(
        self, model: Any, plan: Plan, batch: Batch, features_BVH: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, right answers and kinds, with the questions behind the video, which share it."""
        model.set_attn_implementation({"text_config": SHARED_VIDEO})
        kept_BK = torch.cat(
            [
                self._thinned(model, features_VH, plan, None if plan.blind else ids[rng.integers(len(ids), size=1)])
                for features_VH, ids in zip(features_BVH, batch.question_ids, strict=True)
            ]
        )
        kept = features_BVH.gather(1, kept_BK[..., None].expand(-1, -1, features_BVH.shape[-1]))
        asked = (self.sinks, batch.question_ids, LOOK_ROWS, (), batch.grid)
        answered = answer_questions(model, kept, batch.frames, kept_BK, *asked)
        weight, frame_BK = kind_weight(batch.kind.clamp(min=0)) * (batch.kind >= 0), kept_BK // batch.grid.cells
        looks = [
            look_loss(answered.looks[FIND_LAYER][:, :, 0], batch.find, frame_BK, weight),
            look_loss(answered.looks[READ_LAYER][:, :, 0], batch.read, frame_BK, weight),
        ]
        looks += [
            look_loss(answered.looks[NAMED_LAYER][:, :, n], batch.named[:, :, n], frame_BK, weight) for n in (0, 1)
        ]
        answer, stop = self.answer_loss(answered.logits, batch.target, batch.kind)
        right = answered.logits[..., 0, :].argmax(-1) == batch.target
        return answer + STOP_WEIGHT * stop + self.args.look * torch.stack(looks).sum(), right, batch.kind

    def _in_front(
        self, model: Any, plan: Plan, batch: Batch, features_BVH: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with each question in front of a video of its own."""
        model.set_attn_implementation({"text_config": ASKED_FIRST})
        places = (batch.kind >= 0).nonzero()[torch.from_numpy(rng.permutation(int((batch.kind >= 0).sum())))]
        places = places[: plan.rows]
        places = places[places[:, 0].argsort(stable=True)]
        video, row = places.unbind(1)
        ids = batch.question_ids[video, row]
        kept_RK = torch.cat(
            [
                self._thinned(model, features_VH, plan, ids[video == number])
                for number, features_VH in enumerate(features_BVH)
                if bool((video == number).any())
            ]
        )
        kept = features_BVH[video[:, None], kept_RK]
        asked = (batch.frames, kept_RK, self.sinks, ids, (FIND_LAYER, READ_LAYER), batch.grid)
        logits, looks = answer_asked_first(model, kept, *asked)
        kind, target, frame = batch.kind[video, row], batch.target[video, row], kept_RK // batch.grid.cells
        marks = {FIND_LAYER: batch.find, READ_LAYER: batch.read}
        weight = kind_weight(kind)[:, None]
        seen = [look_loss(looks[layer], mark[video, row][:, None], frame, weight) for layer, mark in marks.items()]
        answer, stop = self.answer_loss(logits, target, kind)
        right = logits[:, 0].argmax(-1) == target
        return answer + STOP_WEIGHT * stop + self.args.look * torch.stack(seen).sum(), right, kind

    def _advance(self, figures: dict[str, float]) -> None:
        """All sets from the first update on: there are no levels."""

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Accuracy of the averaged weights on held-out digits and backgrounds, for each set and place of the
        question: whole videos, and an eighth of their tokens."""
        found: dict[str, Any] = {}
        held_out = load_digits("validation")
        for source in SOURCES:
            scenes, frames, _ = source.lengths[-1]
            whole = frames * source.grid.cells
            for kept, first in ((whole, False), (whole // 8, False), (whole // 8, True)):
                rng, sums = np.random.default_rng(7), {}  # the same videos every time
                plan = Plan(source, scenes, frames, 1, kept, first, rows=8, blind=True)
                for _ in range(CHECKED if source.name != "standard" else 2 * CHECKED):
                    with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                        _, figures = self.answer(self.average, plan, rng, held_out)
                    for name, value in figures.items():
                        sums.setdefault(name.split(": ")[-1], []).append(value)
                name = f"{source.name}{', asked first' if first else ''}, {kept} tokens"
                found[name] = {k: round(sum(v) / len(v), 3) for k, v in sums.items()}
        return found


def read_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, and the shape of the model that ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/further", help="folder for checkpoint and log")
    parser.add_argument("--stills", type=int, default=500, help="updates on single frames")
    parser.add_argument("--steps", type=int, default=1600, help="updates on videos")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--decoder-lr", type=float, default=1e-3)
    parser.add_argument("--look", type=float, default=0.3, help="weight of the guided looks")
    args = parser.parse_args(given)
    vars(args).update(difficulty="standard", hidden=128, layers=6, vision_hidden=96, vision_depth=3)
    return args


def main() -> None:
    """Read the command line and train."""
    args = read_arguments()
    torch.set_num_threads(args.threads)
    Further(args).run()


if __name__ == "__main__":
    main()
