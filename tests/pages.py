"""Reports for the tests of the HTML page: a real run with hostile strings in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from models import build, prompt
from torch._dynamo import reset

import segmo
from segmo.passes.reasons import Miss
from segmo.report import Report

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
        text_after=first.text_after.replace("masked_scatter(", f"masked_scatter('{EVIL}', "),
        ops_after={**first.ops_after, EVIL: 3},
        misses=(miss,),
    )
    graph = dataclasses.replace(prefill, passes=(record, *prefill.passes[1:]), notes=(f"note {EVIL}",))
    return dataclasses.replace(report, model=f"Model {EVIL}", graphs=[graph, *report.graphs[1:]])
