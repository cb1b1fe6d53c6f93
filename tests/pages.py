"""Reports for the tests of the HTML page: a real run with hostile strings in it, and the same one made large."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np
import torch
from models import build, prompt
from torch._dynamo import reset

import segmo
from segmo.passes.reasons import Miss
from segmo.passes.runner import PassRecord
from segmo.passes.snapshot import Written
from segmo.report.prefill import Prefill
from segmo.report.record import GraphReport
from segmo.report.report import Report
from segmo.report.shown import Shown
from segmo.report.text import node_name, readable

EVIL = '<img data-evil src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>\'&amp;'
FRAMES = 9


def make_report(**options: Any) -> Report:
    """The report of a tiny Qwen2-VL whose prompt was described with markup in the question and the file's name."""
    reset()
    model = build("qwen2_vl")
    segmo.compile(model, **{"keep": 0.5, **options})
    pictures = np.random.default_rng(0).integers(0, 255, (2 * FRAMES, 40, 40, 3), dtype=np.uint8)
    with segmo.show_prompt(pictures, question=f"what? {EVIL}", name=f"{EVIL}.mp4"):
        model.generate(**prompt("qwen2_vl", FRAMES), max_new_tokens=2, do_sample=False)
    return segmo.last_report()


def with_markup(report: Report) -> Report:
    """The report with markup where a graph's strings are: node names, code, reasons, source lines, notes."""
    prefill = report.graphs[0]
    miss = Miss("cannot-follow", f"reason {EVIL}", f"remedy {EVIL}", f"node_{EVIL}", f"file.py:1: {EVIL}")
    first = prefill.passes[0]
    record = dataclasses.replace(
        first,
        after=Written(first.text_after.replace("masked_scatter(", f"masked_scatter('{EVIL}', ")),
        ops_after={**first.ops_after, EVIL: 3},
        misses=(miss,),
    )
    graph = dataclasses.replace(prefill, passes=(record, *prefill.passes[1:]), notes=(f"note {EVIL}",))
    return dataclasses.replace(report, model=f"Model {EVIL}", graphs=[graph, *report.graphs[1:]])


def enlarged(report: Report, layers: int, frames: int, cells: int = 48) -> Report:
    """The report as of a model with so many decoder layers and a video of so many frames, with pictures."""
    prefill = report.graphs[0]
    records = [
        dataclasses.replace(
            record,
            before=Written(_deeper(record.text_before, layers)),
            after=Written(_deeper(record.text_after, layers)),
        )
        for record in prefill.passes
    ]
    graph = GraphReport(prefill.kind, tuple(records), prefill.notes, prefill.choices)
    pictures = np.random.default_rng(0).integers(0, 255, (frames, 90, 160, 3), dtype=np.uint8)
    made = _prefill(frames, cells, Shown("a question", "long.mp4", pictures, (1280, 720)))
    return dataclasses.replace(report, graphs=[graph], prefill=made)


@functools.cache
def _deeper(text: str, layers: int) -> str:
    """A graph of three decoder layers with the middle one again and again, as a model of so many layers has it.

    Copies read their own parameters and name their own nodes; the last layer stays the last.
    """
    signature, *lines = text.split("\n        ")
    starts = [
        next(at for at, line in enumerate(lines) if f"layers_modules_{n}_" in line and "= L_" not in line)
        for n in (1, 2)
    ]
    middle = lines[slice(*starts)]
    names = {node_name(line) for line in readable("\n".join(middle))} - {""}

    def copied(line: str, layer: int) -> str:
        named = re.sub(r"\w+", lambda match: f"{match[0]}_of_{layer}" if match[0] in names else match[0], line)
        return named.replace("layers_modules_1_", f"layers_modules_{layer}_")

    copies = [copied(line, layer) for layer in range(2, layers - 1) for line in middle]
    tail = [line.replace("layers_modules_2_", f"layers_modules_{layers - 1}_") for line in lines[starts[1] :]]
    return "\n        ".join([signature, *lines[: starts[1]], *copies, *tail])


def _prefill(frames: int, cells: int, shown: Shown) -> Prefill:
    """A prompt with some text, a video in scenes of 25 frames, and a question; a quarter of it kept."""
    generator = torch.Generator().manual_seed(0)
    sinks, query = 12, 20
    frame = torch.arange(frames).repeat_interleave(cells)
    frame_BN = torch.cat([torch.full((sinks,), -1), frame, torch.full((query,), -2)])[None]
    cell_BN = torch.cat([torch.full((sinks,), -1), torch.arange(cells).repeat(frames), torch.full((query,), -1)])[None]
    scene_BN = torch.where(frame_BN >= 0, frame_BN // 25, frame_BN)
    keep_N = (torch.rand(frame_BN.shape[1], generator=generator) < 0.25) | (cell_BN[0] < 0)
    index_BK = keep_N.nonzero()[:, 0][None]
    return Prefill(
        {
            "frame": frame_BN,
            "question": frame_BN == -2,
            "cell": cell_BN,
            "scene": scene_BN,
            "novelty": torch.rand(frame_BN.shape, generator=generator),
            "relevance": torch.rand(1, frames // 25 + 1, generator=generator),
            "index": index_BK,
            "segment": scene_BN[:, index_BK[0]],
            "context": torch.zeros(index_BK.shape, dtype=torch.bool),
        },
        shown,
    )


def record_of(report: Report, name: str) -> PassRecord:
    """The record of a pass on the prefill graph."""
    return next(record for record in report.graphs[0].passes if record.name == name)
