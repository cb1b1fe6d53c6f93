"""The prefill of one prompt in four ways, timed: eager, LSP alone, CAS alone, and both.

Legend: N prompt tokens, F frames of the language model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

import segmo
from segmo.compat.arguments import with_arguments

RUNS = 3

Prompt = Mapping[str, Any]


@dataclass(frozen=True)
class Way:
    """A way to run the model: the options of :func:`segmo.compile`, or None for the model as it is."""

    name: str
    what: str
    options: Mapping[str, Any] | None


def four_ways(keep: float, segments: int | str) -> tuple[Way, ...]:
    """Eager, LSP, CAS and CAS+LSP with the given options."""
    lsp_passes = ("segment-attention", "inject-context")
    return (
        Way("eager", "every token, full attention", None),
        Way(
            "LSP",
            "every token, attention in segments",
            {"keep": 1.0, "segments": segments, "disable": ("select-tokens",)},
        ),
        Way("CAS", "kept tokens, full attention", {"keep": keep, "disable": lsp_passes}),
        Way("CAS+LSP", "kept tokens, attention in segments", {"keep": keep, "segments": segments}),
    )


@dataclass(frozen=True)
class Timing:
    """One way, measured.

    Attributes:
        seconds: median time from the prompt to its first new token, with the video's features given.
        compile_seconds: how much longer the first run took, in which the model is compiled.
        prompt, kept: tokens of the prompt, and those that reach the last layer.
    """

    way: Way
    seconds: float
    compile_seconds: float
    prompt: int
    kept: int


def encode_video(model: Qwen2_5_VLForConditionalGeneration, inputs: Prompt) -> dict[str, Any]:
    """The inputs with the video's features in place of its pixels: the vision tower runs only once."""
    with torch.no_grad():
        features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    prompt = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    return with_arguments(model, prompt, mm_encoder_outputs={"video": features})


def answer(model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, tokens: int) -> Tensor:
    """Up to ``tokens`` greedily generated token ids, (tokens,)."""
    untyped: Any = model  # generate() is typed for a protocol that transformers' own classes do not meet
    ids: Tensor = untyped.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    return ids[0, prompt["input_ids"].shape[1] :]


def use_way(model: Qwen2_5_VLForConditionalGeneration, way: Way) -> None:
    """Compile the model in place for this way, or bring it back to eager."""
    segmo.uncompile(model)
    if way.options is not None:
        segmo.compile(model, **way.options)


def time_prefill(
    model: Qwen2_5_VLForConditionalGeneration,
    prompt: Prompt,
    way: Way,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Timing:
    """Run the prefill once to warm up and compile, then ``RUNS`` times; leaves the model compiled this way.

    Args:
        model: the model, compiled or not.
        prompt: from :func:`encode_video`.
        way: how to run it.
        progress: called with (runs done, runs in all).
    """
    use_way(model, way)
    seconds = []
    for run in range(1 + RUNS):
        start = time.perf_counter()
        answer(model, prompt, tokens=1)
        seconds.append(time.perf_counter() - start)
        progress(run + 1, 1 + RUNS)
    median = statistics.median(seconds[1:])
    length = int(prompt["input_ids"].shape[1])
    kept = length
    if way.options is not None:
        tokens = segmo.last_report().to_dict()["tokens"]
        kept = length - tokens["video"] + tokens["kept"]
    return Timing(way, median, max(0.0, seconds[0] - median), length, kept)


def kept_cells(prefill: Any, grid: Tensor, merge: int) -> NDArray[np.bool_]:
    """Which tokens of the video were kept in the first row of a prefill.

    Args:
        prefill: ``segmo.last_report().prefill``.
        grid: the video's patches, (time, height, width), as ``video_grid_thw`` has them.
        merge: patches of a token's side.

    Returns:
        (F, cells_h, cells_w) bool, True where kept.
    """
    frame_N, cell_N = prefill.frame[0], prefill.cell[0]
    if prefill.index is not None:
        frame_N, cell_N = frame_N[prefill.index[0]], cell_N[prefill.index[0]]
    frames, height, width = (int(size) for size in grid)
    kept = np.zeros((frames, (height // merge) * (width // merge)), dtype=np.bool_)
    video_N = cell_N >= 0  # text has no cell
    kept[frame_N[video_N].numpy(), cell_N[video_N].numpy()] = True
    return kept.reshape(frames, height // merge, width // merge)
