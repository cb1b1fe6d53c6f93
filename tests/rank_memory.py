"""A memory that is spread over ranks; functions here run in a crew's processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import VIDEO, build, prompt
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import segmo

QUESTIONS = (torch.tensor([11, 12, 13]), torch.tensor([21, 22]))


def part_of(inputs: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """A processor's outputs for some frames of a Qwen2-VL video of four cells a frame."""
    ids, grid = inputs["input_ids"][0], inputs["video_grid_thw"][0].tolist()
    first = int((ids == VIDEO).nonzero()[0])
    row = torch.cat([ids[:first], torch.full(((end - start) * 4,), VIDEO), ids[-5:]])[None]
    each = grid[1] * grid[2]
    return {
        "input_ids": row,
        "video_grid_thw": torch.tensor([[end - start, *grid[1:]]]),
        "pixel_values_videos": inputs["pixel_values_videos"][start * each : end * each],
    }


def watched(rank: int, world: int, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What a memory says that was watched in two parts, asked twice and saved."""
    del rank
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=18)
    memory = segmo.watch(model, None, part_of(inputs, 0, 7), keep=0.4, **options)
    memory.extend(part_of(inputs, 7, 18))
    answers = [memory.ask(question, max_new_tokens=3).tolist() for question in QUESTIONS]
    batch = [row.tolist() for row in memory.ask(list(QUESTIONS), max_new_tokens=3)]
    attended = memory.ask(QUESTIONS[0], scorer="attention", max_new_tokens=3).tolist()
    summary = memory.summary()
    memory.save(folder)
    loaded = segmo.Memory.load(model, folder, ranks=options.get("ranks"))
    again = loaded.ask(QUESTIONS[1], max_new_tokens=3).tolist()
    share = loaded.summary()["bytes"] / summary["bytes"]
    return {
        "answers": answers,
        "batch": batch,
        "attended": attended,
        "summary": summary,
        "again": again,
        "share": share,
    }


def filmed(rank: int, world: int, folder: Path, ranks: str | None, broken: bool = False) -> list[Any]:
    """What a camera's video is answered, of which the first rank alone has frames."""
    del world
    processor: Any = AutoProcessor
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    noise = np.random.default_rng(1)
    frames = np.repeat(noise.integers(0, 256, (6, 1, 32, 32, 3), dtype=np.uint8), 4, 1).reshape(-1, 32, 32, 3)

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield from frames
        if broken:
            raise OSError("unplugged")

    found = segmo.live(
        model,
        processor.from_pretrained(folder),
        camera() if rank == 0 else None,
        question=lambda seconds: f"What is it at {seconds}?" if rank == 0 else "another rank's",
        every=4.0,
        fps=2.0,
        chunk=4,
        skip=False,
        limit=30_000,
        ranks=ranks,
        generation={"max_new_tokens": 3},
    )
    return [(a.question, a.text, a.seconds, a.frames, a.memory.summary()["held_tokens"]) for a in found]
