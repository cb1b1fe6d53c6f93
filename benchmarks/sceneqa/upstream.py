"""Frames chosen before the vision encoder against evenly spread ones: python benchmarks/sceneqa/upstream.py

At each number of frames the same model reads the same questions, once with frames chosen by SegMo (scenes, relevance to
the question, novelty; ``segmo.compile(model, frames=..., keep=1, segments=1)`` on pixels, so that nothing else is
encoded), once with as many frames at a steady rate. All tokens of a frame are kept, at their places in the whole
prompt. "encoded" is how many frames the encoder saw on average: those that are kept, and those that only the scorer
looked at. The last column counts questions that only one of the two got right.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decoder import run_decoder
from rich.console import Console
from rich.table import Table
from rivals.selectors import uniform_frames
from torch import Tensor

import segmo
from segmo.runtime.frame_budget import frame_share
from segmo.sceneqa.methods import answer_full
from segmo.sceneqa.model import Prompts, build_prompts, load_model, weights_for
from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.results import OVERALL, Share
from segmo.sceneqa.task import DIFFICULTIES, VERSION, Checksum, Sample, samples

FRAMES = (32, 16, 8)
CELLS = 6  # tokens of a frame
UNIFORM, CHOSEN, BLIND = "uniform frames", "CAS upstream", "CAS upstream, blind"


@dataclass(frozen=True)
class Said:
    """An answer: the question's kind, whether it was right, and how many frames were encoded for it."""

    kind: str
    right: bool
    encoded: int


Right = dict[tuple[str, int], list[Said]]  # (method, frames) -> question by question


def _inputs(processor: Any, pictures: Any, prompts: Prompts, video_token: int) -> dict[str, Any]:
    """One question with pixels, as a processor gives it."""
    pixels = processor.video_processor(videos=[pictures], return_tensors="pt")["pixel_values_videos"]
    return {
        "input_ids": prompts.input_ids,
        "attention_mask": torch.ones_like(prompts.input_ids),
        "position_ids": prompts.position_ids,
        "mm_token_type_ids": 2 * (prompts.input_ids == video_token).int(),
        "pixel_values_videos": pixels,
        "video_grid_thw": prompts.grid,
        "logits_to_keep": 1,
    }


@dataclass(frozen=True)
class Asked:
    """A video and the prompts about it."""

    sample: Sample
    prompts: Prompts

    @property
    def frames(self) -> int:
        """Frames of the language model."""
        return len(self.prompts.features) // CELLS


@torch.no_grad()
def _uniform(model: Any, asked: Asked, frames: int) -> Tensor:
    """Logits of the next token of each question, with evenly spread frames."""
    prompts, count = asked.prompts, len(asked.prompts.input_ids)
    kept = uniform_frames(prompts.features.unflatten(0, (-1, CELLS)), frames / asked.frames, 0)
    return run_decoder(model, prompts, kept.expand(count, -1), prompts.features[kept].expand(count, -1, -1))


@torch.no_grad()
def _chosen(model: Any, processor: Any, asked: Asked, frames: int) -> tuple[Tensor, list[int]]:
    """The same through the compiled model, from pixels, one question at a time; and how many frames were encoded."""
    rows, encoded = [], []
    for question in range(len(asked.prompts.input_ids)):
        one = asked.prompts.only(question)
        rows.append(model(**_inputs(processor, asked.sample.pictures, one, model.config.video_token_id)).logits[:, -1])
        found = segmo.last_report().frames
        assert found is not None
        assert len(found.kept[0]) == frames
        encoded.append(found.encoded)
    return torch.cat(rows), encoded


def measure(model: Any, processor: Any, asked: Sequence[Asked], console: Console) -> Right:
    """Asks every question with every method."""
    right: Right = defaultdict(list)

    def note(name: str, frames: int, one: Asked, logits: Tensor, encoded: Sequence[int] | None = None) -> None:
        is_right = (logits.argmax(-1) == one.prompts.answer).tolist()
        right[name, frames] += map(Said, one.prompts.kinds, is_right, encoded or [frames] * len(is_right))

    for one in asked:
        note("full attention", one.frames, one, answer_full(model, one.prompts).logits)
    for frames in FRAMES:
        for one in asked:
            note(UNIFORM, frames, one, _uniform(model, one, frames))
        for name, balance in ((CHOSEN, 0.5), (BLIND, 0.0)):
            share = frame_share(frames, asked[0].frames)
            segmo.compile(model, keep=1, frames=share, segments=1, balance=balance)
            for one in asked:
                note(name, frames, one, *_chosen(model, processor, one, frames))
            segmo.uncompile(model)
        console.print(f"{frames} frames done")
    return right


def ask(model: Any, processor: Any, split: str, difficulty: str, videos: int) -> tuple[list[Asked], str]:
    """The videos with their prompts, and what identifies the set."""
    checksum, found, size = Checksum(), [], DIFFICULTIES[difficulty]
    for sample in samples(split, size, videos):
        checksum.add(sample)
        found.append(Asked(sample, build_prompts(model, processor, sample.pictures, sample.questions, sample.index)))
    label = f"SceneQA {VERSION}, {split} split, {videos} videos of {size.scenes} scenes, {size.frames} frames"
    return found, f"{label}, checksum {checksum}"


def table(right: Right, title: str) -> Table:
    """Accuracies in percent with 95% intervals."""
    made = Table(title=title, title_justify="left")
    for name in ("method", "frames", "encoded", *KINDS, OVERALL, "won : lost against uniform"):
        made.add_column(name, justify="left" if name == "method" else "right")
    for (name, frames), answers in right.items():
        shares = []
        for kind in (*KINDS, OVERALL):
            mine = [said.right for said in answers if kind in (said.kind, OVERALL)]
            shares.append(str(Share(sum(mine), len(mine))))
        encoded = f"{statistics.mean(said.encoded for said in answers):.1f}"
        made.add_row(name, str(frames), encoded, *shares, _duel(answers, right.get((UNIFORM, frames))))
    return made


def _duel(mine: Sequence[Said], other: Sequence[Said] | None) -> str:
    if other is None or other is mine:
        return ""
    pairs = [(a.right, b.right) for a, b in zip(mine, other, strict=True)]
    return f"{sum(a and not b for a, b in pairs)} : {sum(b and not a for a, b in pairs)}"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="folder of the trained model (default: the one that ships for the difficulty)"
    )
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--difficulty", default="standard", choices=tuple(DIFFICULTIES))
    parser.add_argument("--videos", type=int, default=8, help="up to 25 questions about each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=200)
    model, processor = load_model(args.model or weights_for(DIFFICULTIES[args.difficulty]))
    asked, label = ask(model, processor, args.split, args.difficulty, args.videos)
    console.print(table(measure(model, processor, asked, console), label))


if __name__ == "__main__":
    main()
