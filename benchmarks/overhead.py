"""What the call around a compiled graph adds to a prefill and to a decode step: ``python benchmarks/overhead.py``.

What stands around it (:mod:`segmo.calls`, the mark on its cache, Dynamo's settings) is timed by itself, with the
graph's result put in its place: a difference of two whole calls would be lost in their noise. A narrow model, so that
the graphs take little time; what is added grows with the number of layers alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import segmo
from segmo.calls.call import Call
from segmo.calls.inputs import encoded
from segmo.calls.standing import standing_call
from segmo.compat import flags
from segmo.inspection.models import build, load_config, shrink
from segmo.inspection.prompts import synthetic_prompt
from segmo.runtime.cuts import Cut, tell

FAMILY = "llava_onevision"


def median(run: Callable[[], Any], runs: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Decode:
    """Decode steps behind one prefill, each with a token more in the cache."""

    def __init__(self, model: Any, prompt: dict[str, Any]) -> None:
        self.model = model
        self.inputs = {
            "input_ids": torch.tensor([[11]]),
            "attention_mask": prompt["attention_mask"],
            "past_key_values": model(**prompt).past_key_values,
            "logits_to_keep": 1,
        }

    def step(self) -> None:
        """The next step."""
        self.inputs["attention_mask"] = torch.nn.functional.pad(self.inputs["attention_mask"], (0, 1), value=1)
        self.again()

    def again(self) -> None:
        """A call with the same arguments."""
        self.model(**self.inputs)


@contextmanager
def graph_left_out(call: Call, result: Any, cut: Cut | None) -> Iterator[None]:
    """Inside the block the graph's result is there at once, so that what remains is what stands around it."""

    def at_once(**inputs: Any) -> Any:
        if cut is not None:
            tell(cut)
        return result

    compiled, call.compiled = call.compiled, at_once
    try:
        yield
    finally:
        call.compiled = compiled


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=50, help="of each graph; what stands around it runs ten times as often"
    )
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    model: Any = build(shrink(load_config(FAMILY, given.layers)))
    segmo.compile(model, keep=0.25)
    call = standing_call(model)
    assert call is not None
    prompt = {**encoded(model, synthetic_prompt(model, given.frames)), "use_cache": True, "logits_to_keep": 1}
    decode = Decode(model, prompt)
    result = model(**prompt)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    assert prefill.index is not None
    cut = Cut(prompt["input_ids"].shape[1], prefill.index)
    hold = median(lambda: flags.hold()(), 10 * given.runs)
    table = Table(title=f"Medians of {given.runs} runs", title_justify="left")
    for column in ("", "call, ms", "added around the graph, us", "of the call"):
        table.add_column(column, justify="right" if column else "left")
    for name, run, told in (("prefill", lambda: model(**prompt), cut), ("decode step", decode.step, None)):
        median(run, 3)  # compiles, and warms up
        whole = median(run, given.runs)
        with graph_left_out(call, result, told):
            added = median(run if told else decode.again, 10 * given.runs) + hold
        table.add_row(name, f"{1e3 * whole:.2f}", f"{1e6 * added:.0f}", f"{added / whole:.2%}")
    console = Console()
    console.print(table)
    console.print(f"of which Dynamo's settings around each call: {1e6 * hold:.1f} us")


if __name__ == "__main__":
    main()
