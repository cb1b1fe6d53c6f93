"""A decode step through SegMo's graph beside eager's: ``python benchmarks/decode.py``.

The decoder and the prompt are those of benchmarks/prefill.py. All ways take a step in turn, so that what else the
machine does meets all alike; the ratios are of steps in the same turn. With ``keep=1`` and one segment the cache holds
the same keys as eager's, and what differs is the graph alone; with ``keep=0.25`` fewer keys are attended to as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from overhead import Decode
from prefill import build_model, build_prompt
from rich.console import Console
from rich.table import Table

import segmo

WAYS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "keep=1, segments=1": {"keep": 1.0, "segments": 1},
    "keep=0.25": {"keep": 0.25},
}


def prepared(options: dict[str, Any] | None, tokens: int, dtype: torch.dtype) -> Decode:
    """A model whose cache holds the prompt's keys; the same weights for every way."""
    model = build_model(dtype)
    if options is not None:
        segmo.compile(model, **options)
    prompt = build_prompt(model, tokens, dtype)
    return Decode(model, {**prompt, "attention_mask": torch.ones_like(prompt["input_ids"]), "use_cache": True})


def timed(step: Decode) -> float:
    """Seconds of the next step."""
    start = time.perf_counter()
    step.step()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 16384], help="of the video")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    table = Table(title=f"Decode steps, {given.dtype}: medians of {given.runs}", title_justify="left")
    for column in ("video tokens", "way", "ms", "over eager (quartiles)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for tokens in given.tokens:
        steps = {way: prepared(options, tokens, getattr(torch, given.dtype)) for way, options in WAYS.items()}
        for step in (*steps.values(), *steps.values()):  # the first compiles, and lengths become dynamic
            step.step()
        turns = [{way: timed(step) for way, step in steps.items()} for _ in range(given.runs)]
        for way in WAYS:
            low, half, high = statistics.quantiles((turn["eager"] / turn[way] for turn in turns), n=4)
            median = statistics.median(turn[way] for turn in turns)
            table.add_row(f"{tokens:,}", way, f"{1e3 * median:.2f}", f"{half:.2f}x ({low:.2f} to {high:.2f})")
    Console().print(table)


if __name__ == "__main__":
    main()
