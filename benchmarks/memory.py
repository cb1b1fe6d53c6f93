"""A video asked several times: the whole prompt again, a prefix cache, CAS+LSP, and a memory (``segmo.watch``).

    python benchmarks/memory.py                      # 16k video tokens, bf16
    python benchmarks/memory.py --live 1000          # a video that goes on: what an extend costs, and its trend

The decoder is that of benchmarks/prefill.py, with the features of the video given. Ways, in one process and one run:

- eager: each question is a prefill of the whole prompt;
- prefix cache: the model's own cache of everything in front of the question, which every question goes on from (the
  honest rival: nothing of the video is computed twice, and every key is read);
- LSP: a prefill of the whole prompt under segment attention with every token, which is what watching is held against;
- CAS+LSP: a prefill of the whole prompt with the tokens that the question keeps;
- memory: watched once, keys selected by each question: by embeddings, by attention in the last layer's keys and in each
  layer's; in eight bits; and on the host.

"first" is what a question costs that comes with the video, "next" one that comes after others: seconds to the first
token. "step" is a decode step. Medians; a row is saved (``--json``) as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from memory_live import FRAME_TOKENS, live, show_live
from prefill import END, SEGMENTS, VIDEO, build_model, build_prompt
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache

import segmo

STEPS = 16
MEMORIES: dict[str, dict[str, Any]] = {
    "memory": {},
    "memory, attention": {"scorer": "attention"},
    "memory, attention of each layer": {"scorer": "attention", "layer": "each"},
    "memory, 8 bits": {"bits": 8},
    "memory on the host": {"place": "host"},
}


def questions(count: int) -> list[Tensor]:
    """So many questions of 32 tokens behind the end of the video."""
    return [torch.tensor([END, *((torch.arange(32) * (at + 3)) % 200 + 30).tolist()]) for at in range(count)]


def with_question(prompt: dict[str, Any], question: Tensor) -> dict[str, Any]:
    """The whole prompt with another question, as ``generate`` takes it."""
    ids = prompt["input_ids"]
    last = int((ids[0] == VIDEO).nonzero()[-1])
    row = torch.cat([ids[0, : last + 1], question])[None]
    return {
        "input_ids": row,
        "attention_mask": torch.ones_like(row),
        "mm_token_type_ids": torch.where(row == VIDEO, 2, 0),
        "video_grid_thw": prompt["video_grid_thw"],
        "mm_encoder_outputs": prompt["mm_encoder_outputs"],
    }


def generate(model: Any, inputs: dict[str, Any], clock: Clock, **more: Any) -> Any:
    """Greedy, a first token and ``STEPS`` more."""
    tokens = 1 + STEPS
    return model.generate(
        **inputs, **more, streamer=clock, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )


class Clock:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        """The prompt, then one new token after the other."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """No more."""


def timed(answer: Callable[[Tensor, Clock], Any], asked: list[Tensor]) -> tuple[list[float], float]:
    """Seconds to the first token of each question, and of a decode step."""
    first, steps = [], []
    for question in asked:
        clock, start = Clock(), time.perf_counter()
        answer(question, clock)
        _, *times = clock.times
        first.append(times[0] - start)
        steps += [later - earlier for earlier, later in pairwise(times[1:])]  # the first one may be compiled
    return first, statistics.median(steps)


def row(way: str, first: float, times: list[float], step: float, size: int = 0) -> dict[str, Any]:
    """What one way costs."""
    return {"way": way, "first": first, "next": statistics.median(times), "step": step, "bytes": size}


def cache_bytes(cache: Any) -> int:
    """Bytes of its keys and values."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def eager(model: Any, prompt: dict[str, Any], asked: list[Tensor]) -> dict[str, Any]:
    """The whole prompt for every question."""
    cache = DynamicCache(config=model.config.get_text_config())
    start = time.perf_counter()
    model(**with_question(prompt, asked[0]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    first, size = time.perf_counter() - start, cache_bytes(cache)
    del cache
    times, step = timed(lambda question, clock: generate(model, with_question(prompt, question), clock), asked[1:3])
    return row("eager", first, times, step, size)


def prefix(model: Any, prompt: dict[str, Any], asked: list[Tensor]) -> dict[str, Any]:
    """The model's own cache of what stands in front of the question, cropped after each."""
    head = with_question(prompt, asked[0][:1])
    kept, cache = head["input_ids"].shape[1] - 1, DynamicCache(config=model.config.get_text_config())
    start = time.perf_counter()
    model(**head, past_key_values=cache, use_cache=True, logits_to_keep=1)
    watched = time.perf_counter() - start
    cache.crop(kept - cache.get_seq_length())
    size = cache_bytes(cache)

    def answer(question: Tensor, clock: Clock) -> Any:
        inputs = with_question(prompt, question)
        del inputs["mm_encoder_outputs"]  # the video is in the cache
        out = generate(model, inputs, clock, past_key_values=cache)
        cache.crop(kept - cache.get_seq_length())
        return out

    times, step = timed(answer, asked)
    return row("prefix cache", watched + times[0], times[1:], step, size)


def rewritten(model: Any, way: str, options: dict[str, Any], prompt: dict[str, Any], asked: list[Tensor]) -> Any:
    """A prefill under SegMo for every question; compiled before it is timed."""
    segmo.compile(model, segments=SEGMENTS, **options)
    generate(model, with_question(prompt, asked[0]), Clock())
    times, step = timed(lambda question, clock: generate(model, with_question(prompt, question), clock), asked)
    cache = model(**with_question(prompt, asked[0]), use_cache=True, logits_to_keep=1).past_key_values
    segmo.uncompile(model)
    return row(way, statistics.median(times[1:]), times[1:], step, cache_bytes(cache))


def remembered(
    model: Any, prompt: dict[str, Any], asked: list[Tensor], way: str, options: dict[str, Any]
) -> dict[str, Any]:
    """A memory; its row, with the seconds that watching took."""
    start = time.perf_counter()
    memory = segmo.watch(model, None, with_question(prompt, asked[0]), segments=SEGMENTS, **options)
    watched = time.perf_counter() - start

    def answer(question: Tensor, clock: Clock) -> Any:
        return generate(model, memory.inputs(question), clock)

    times, step = timed(answer, asked)
    found = row(way, watched + times[0], times[1:], step, memory.summary()["bytes"])
    return {**found, "watching": watched, "first question": times[0]}


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table, each time beside eager's, CAS+LSP's and the prefix cache's."""
    table = Table(title="A video asked several times, medians")
    for column in (
        "way",
        "first, s",
        "next, s",
        "of eager's",
        "of CAS+LSP's",
        "step, ms",
        "of the prefix cache's",
        "MB",
    ):
        table.add_column(column, justify="right" if table.columns else "left")
    by = {each["way"]: each for each in rows}
    for each in rows:
        shares = [each["next"] / by["eager"]["next"], each["next"] / by["CAS+LSP"]["next"]]
        table.add_row(
            each["way"],
            f"{each['first']:.2f}",
            f"{each['next']:.3f}",
            *(f"{share:.1%}" for share in shares),
            f"{1e3 * each['step']:.1f}",
            f"{each['step'] / by['prefix cache']['step']:.0%}",
            f"{each['bytes'] / 1e6:.0f}",
        )
    console.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--live", type=int, default=0, metavar="EXTENDS", help="measure a video that goes on, instead")
    parser.add_argument("--limit", type=int, default=2**26, help="bytes of the memory of the video that goes on")
    parser.add_argument("--json", type=Path, default=Path("out/memory.json"), help="file for the rows")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    console, dtype = Console(width=130), getattr(torch, given.dtype)
    model = build_model(dtype)
    prompt = build_prompt(model, given.tokens, dtype)
    prompt["video_grid_thw"] = torch.tensor([[given.tokens // FRAME_TOKENS, 32, 32]])
    given.json.parent.mkdir(parents=True, exist_ok=True)
    if given.live:
        found = live(model, prompt, given.live, given.limit)
        given.json.write_text(json.dumps(found))
        show_live(found, console)
        return
    asked, rows = questions(given.questions), []

    def done(each: dict[str, Any]) -> None:
        rows.append(each)
        console.print(f"{each['way']}: next question {each['next']:.3f} s")
        given.json.write_text(json.dumps(rows, indent=1))

    done(eager(model, prompt, asked))
    done(prefix(model, prompt, asked))
    done(rewritten(model, "LSP", {"keep": 1.0}, prompt, asked))
    done(rewritten(model, "CAS+LSP", {"keep": given.keep}, prompt, asked))
    for way, options in MEMORIES.items():
        done(remembered(model, prompt, asked, way, {"keep": given.keep, **options}))
    show(rows, console)
    watched = rows[4]["watching"]
    console.print(f"watching: {watched:.2f} s, {watched / rows[2]['next']:.2f} of LSP's prefill with every token")


if __name__ == "__main__":
    main()
