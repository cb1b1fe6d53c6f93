"""Prefill and decode of one prompt, timed apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from segmo.compat.dynamo import compile_seconds
from segmo.report.timeline import Timeline

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Generated:
    """What a model wrote.

    Attributes:
        text: without special tokens.
        tokens: their number.
        seconds: busy seconds of "compile" (0 if nothing was compiled), "prefill" and "generate".
    """

    text: str
    tokens: int
    seconds: Mapping[str, float]


class _Clock:
    """A streamer for ``generate``: notes when the first new token comes, and counts."""

    def __init__(self, timeline: Timeline, wanted: int, progress: Progress) -> None:
        self._timeline, self._wanted, self._progress = timeline, wanted, progress
        self.first: float | None = None
        self.compiled = 0.0
        self.tokens = -1  # the prompt comes first

    def put(self, value: Any) -> None:
        """Called by ``generate`` with the prompt and then with each token."""
        self.tokens += 1
        if self.tokens == 1:
            self.first, self.compiled = self._timeline.now(), compile_seconds()
        if self.tokens > 0:
            self._progress(self.tokens, self._wanted)

    def end(self) -> None:
        """Called by ``generate`` at the end."""


@torch.no_grad()
def generate(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    new_tokens: int,
    timeline: Timeline,
    request: str = "",
    label: str = "",
    progress: Progress = lambda done, total: None,
) -> Generated:
    """Greedy tokens until the model ends or ``new_tokens`` are there.

    Args:
        model, processor: of transformers; the model compiled or not.
        inputs: what ``model.generate`` takes.
        new_tokens: at most.
        timeline: gets "prefill" (up to the first new token), "compile" inside it if a graph was made, and "generate".
        request: its name in the time line.
        label: stands before the names of the stages.
        progress: called with (tokens, ``new_tokens``).
    """
    clock = _Clock(timeline, new_tokens, progress)
    start, compiled = timeline.now(), compile_seconds()
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, streamer=clock)
    end, compiling = timeline.now(), compile_seconds() - compiled
    first = end if clock.first is None else clock.first
    # The prefill's graph is made before the first token, the graph of single tokens after it.
    early = compiling if clock.first is None else clock.compiled - compiled
    late = compiling - early
    stages = (
        ("compile", start, start + early),
        ("prefill", start + early, first),
        ("compile", first, first + late),
        ("generate", first + late, end),
    )
    seconds = {"compile": 0.0, "prefill": 0.0, "generate": 0.0}
    for stage, begin, finish in stages:
        seconds[stage] += max(0.0, finish - begin)
        if stage != "compile" or finish > begin:
            timeline.add(label + stage, begin, max(begin, finish), request)
    text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return Generated(text.strip(), clock.tokens, seconds)
