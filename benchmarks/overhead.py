"""What the call around a compiled graph adds to a prefill and to a decode step: ``python benchmarks/overhead.py``.

The graph is called with and without everything that stands around it (:mod:`segmo.calls`), in turns, and the medians
are compared. A narrow model, so that the graphs take little time; what is added does not grow with the model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import segmo
from segmo.calls.call import Call
from segmo.calls.inputs import encoded
from segmo.calls.standing import standing_call
from segmo.compat import flags
from segmo.compiler.capture import called
from segmo.inspection.models import build, load_config, shrink
from segmo.inspection.prompts import synthetic_prompt
from segmo.runtime.cuts import call_and_mark

FAMILY = "llava_onevision"


def medians(ways: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of each way, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Decode:
    """Decode steps behind one prefill, each with a token more in the cache."""

    def __init__(self, model: Any, prompt: dict[str, Any]) -> None:
        self.cache = model(**prompt, use_cache=True, logits_to_keep=1).past_key_values
        self.mask = prompt["attention_mask"]

    def inputs(self) -> dict[str, Any]:
        """Of the next step."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return {
            "input_ids": torch.tensor([[11]]),
            "attention_mask": self.mask,
            "past_key_values": self.cache,
            "logits_to_keep": 1,
        }


def bare(call: Call, inputs: dict[str, Any]) -> Any:
    """The graph alone, and the mark on its cache."""
    with called(call.model):
        return call_and_mark(call.compiled, inputs)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    model: Any = build(shrink(load_config(FAMILY, given.layers)))
    segmo.compile(model, keep=0.25)
    call = standing_call(model)
    assert call is not None
    prompt = encoded(model, synthetic_prompt(model, given.frames))
    decode = Decode(model, prompt)
    steps: dict[str, dict[str, Callable[[], Any]]] = {
        "prefill": {
            "whole": lambda: model(**prompt, logits_to_keep=1),
            "graph": lambda: bare(call, {**prompt, "logits_to_keep": 1}),
        },
        "decode step": {
            "whole": lambda: model(**decode.inputs()),
            "graph": lambda: bare(call, decode.inputs()),
        },
    }
    table = Table(title=f"Medians of {given.runs} runs", title_justify="left")
    for column in ("", "graph, ms", "added around it, us", "of the graph"):
        table.add_column(column, justify="right" if column else "left")
    for name, ways in steps.items():
        medians(ways, 3)  # compiles, and warms up
        found = medians(ways, given.runs)
        added = found["whole"] - found["graph"]
        table.add_row(name, f"{1e3 * found['graph']:.2f}", f"{1e6 * added:.0f}", f"{added / found['graph']:.2%}")
    hold = medians({"hold": lambda: flags.hold()()}, 10 * given.runs)["hold"]
    console = Console()
    console.print(table)
    console.print(f"Dynamo's settings around each call, counted with the graph: {1e6 * hold:.1f} us")


if __name__ == "__main__":
    main()
