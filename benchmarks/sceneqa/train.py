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
from forward import SHARED_VIDEO, encode_frames
from runfolder import RunFolder
from stills import make_stills, training_digits
from torch import Tensor
from untrained import build_config, build_model, build_tokenizer

STILLS = 128  # frames of a batch of stills
EMA = 0.995  # of the weights; the average is what is validated and shipped
REPORT, VALIDATE = 25, 250  # updates


@dataclass
class State:
    """What a checkpoint holds beside the weights."""

    step: int = 0
    seconds: float = 0.0


def _schedule(done: float, step: int) -> float:
    """Part of the highest learning rate: linear warm-up, then a cosine down to a twentieth."""
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Trainer:
    """The model, its optimiser, and the random streams of a run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder, self.state = args, RunFolder(Path(args.out)), State()
        self.tokenizer = build_tokenizer()
        config = build_config(self.tokenizer, args.hidden, args.layers, args.vision_hidden, args.vision_depth)
        self.model: Any = build_model(config, args.seed)
        self.model.set_attn_implementation({"text_config": SHARED_VIDEO})
        self.average: Any = copy.deepcopy(self.model).requires_grad_(False)
        self.alignment = Alignment(self.tokenizer)
        self.digits = training_digits(args.seed)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.05)

    def still_loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Reading single frames."""
        stills = make_stills(STILLS, self.tokenizer, rng, self.digits)
        words = self.model.model.language_model.embed_tokens.weight
        loss, right = self.alignment.loss(words, encode_frames(self.model, stills.patches), stills.caption)
        return loss, {"align": float(loss.detach()), **right}

    def train_step(self) -> dict[str, float]:
        """One update; what it sees depends on seed and step alone, so a resumed run is an unbroken one."""
        rng = np.random.default_rng([self.args.seed, self.state.step])
        done = self.state.step / self.args.stills
        for group in self.optimiser.param_groups:
            group["lr"] = self.args.lr * _schedule(done, self.state.step)
        self.optimiser.zero_grad()
        loss, figures = self.still_loss(rng)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        decay = min(EMA, (self.state.step + 1) / (self.state.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        self.state.step += 1
        return figures

    def save(self) -> None:
        self.folder.save(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "state": vars(self.state),
                "args": vars(self.args),
            }
        )

    def resume(self) -> None:
        record = self.folder.load()
        if record is not None:
            self.model.load_state_dict(record["model"])
            self.average.load_state_dict(record["average"])
            self.optimiser.load_state_dict(record["optimiser"])
            self.state = State(**record["state"])

    def run(self) -> None:
        self.resume()
        self.folder.note_start(self.state.step)
        start, before = time.perf_counter(), self.state.seconds
        recent: dict[str, list[float]] = {}
        while self.state.step < self.args.stills:
            for name, value in self.train_step().items():
                recent.setdefault(name, []).append(value)
            self.state.seconds = before + time.perf_counter() - start
            if self.state.step % REPORT == 0:
                means = {name: round(sum(values) / len(values), 4) for name, values in recent.items()}
                self.folder.log({**vars(self.state), "train": means})
                recent = {}
            if self.state.step % VALIDATE == 0:
                self.save()
        self.save()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sceneqa", help="folder for checkpoint and log")
    parser.add_argument("--stills", type=int, default=4500, help="updates on single frames")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vision-hidden", type=int, default=96)
    parser.add_argument("--vision-depth", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()
