"""SceneQA's benchmark: python benchmarks/sceneqa/evaluate.py --out out/sceneqa-eval

One table: full attention, the rivals, CAS, LSP and both, at every budget; same model, same questions. Results
are saved as they come, and a run that was broken off goes on. Writes ``results.jsonl``, ``results.csv``,
``results.png`` and ``cohesion.png``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from cohesion import draw_cohesion, local_cohesion
from report import FULL, write_report
from rich.console import Console
from rivals.methods import rival_methods
from rivals.saliency import encoder_saliency
from shared import answer_full_shared
from torch import Tensor

from segmo.sceneqa.evaluate import build_set, evaluate, time_methods
from segmo.sceneqa.methods import Method, answer_full, both_method, cas_method, lsp_method, memory_method
from segmo.sceneqa.model import load_model, weights_for
from segmo.sceneqa.task import DIFFICULTIES, make_sample

BUDGETS = (0.5, 0.25, 0.125, 0.0625)
MEMORY_BUDGETS = (0.25, 0.125, 0.0625, 0.03125)  # of a video that was watched once
SEGMENTS = (2, 4, 8)
# Questions about a video; few digits of a video are shown once, so of *order* all there are (a pair in both orders).
PER_KIND = {"retrieve": 4, "moment": 4, "order": 10, "count": 4, "cross-scene": 4}
COHESION_VIDEOS = 8


def segmo_methods() -> list[Method]:
    """CAS with each scorer, LSP with and without context, and both together."""
    found = []
    for keep in BUDGETS:
        found += [
            cas_method(keep, "CAS embedding", scorer="embedding"),
            cas_method(keep, "CAS attention", scorer="attention"),
            both_method(keep),
        ]
    for segments in SEGMENTS:
        found += [lsp_method(segments, False), lsp_method(segments, True)]
    found += [both_method(0.25, f"CAS+LSP, {segments} segments", segments=segments) for segments in SEGMENTS]
    found += [
        both_method(0.25, "CAS+LSP, no context", disable=["inject-context"]),
        both_method(0.25, "CAS+LSP, heads alone", tails=0),
        both_method(0.25, "CAS+LSP, tails alone", context=0),
    ]
    found += [lsp_method("scene", False), lsp_method("scene", True)]
    return [*found, both_method(MEMORY_BUDGETS[-1]), *memory_methods()]


def memory_methods() -> list[Method]:
    """A video watched once, with relevance from embeddings, from one layer's keys and from each layer's; in 8 bits."""
    found = []
    for keep in MEMORY_BUDGETS:
        found += [
            memory_method(keep),
            memory_method(keep, "memory, attention", scorer="attention"),
            memory_method(keep, "memory, attention of each layer", scorer="attention", layer="each"),
            memory_method(keep, "memory, 8 bits", bits=8),
        ]
    return found


def all_methods(saliency: Mapping[int, Tensor]) -> list[Method]:
    """Every row of the table; the first is what the others are compared with."""
    return [Method(FULL, 1.0, answer_full_shared), *rival_methods(BUDGETS, saliency), *segmo_methods()]


def run(args: argparse.Namespace, console: Console) -> None:
    """Build the set, run every method, write table, CSV and pictures."""
    out, difficulty = Path(args.out), DIFFICULTIES[args.difficulty]
    out.mkdir(parents=True, exist_ok=True)
    weights = args.model or weights_for(difficulty)
    model, processor = load_model(weights)
    questions = build_set(model, processor, args.split, difficulty, args.videos, PER_KIND)
    console.print(questions.label)
    console.print(f"weights: {json.loads((weights / 'made.json').read_text())}")
    saliency: dict[int, Tensor] = {}
    methods = [method for method in all_methods(saliency) if re.search(args.only, method.key)]
    if any(method.name in ("FastVID", "FlashVID") for method in methods):
        for index in range(args.videos):
            pictures = make_sample(args.split, difficulty, index, PER_KIND).pictures
            saliency[index] = encoder_saliency(model, processor, pictures)
    if args.times:
        times = time_methods(model, _one_by_one(methods), questions)
        (out / "times.json").write_text(json.dumps(times))
        return
    path = out / "results.jsonl"
    evaluate(model, methods, questions, path, lambda done, total: console.print(f"{done}/{total}"))
    if args.answers_only:
        return
    write_report(out, console)
    if difficulty.busy:
        return
    shares, even = [], 0.0
    for prompts in questions.prompts[:COHESION_VIDEOS]:
        scene_F = make_sample(args.split, difficulty, prompts.video, PER_KIND).scene_F
        share, even = local_cohesion(model, prompts, scene_F)
        shares.append(share)
    draw_cohesion(shares, even).savefig(out / "cohesion.png")


def _one_by_one(methods: Sequence[Method]) -> list[Method]:
    """The methods as a single question runs them: full attention is the model as it is."""
    return [replace(method, answer=answer_full) if method.name == FULL else method for method in methods]


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sceneqa-eval", help="folder for results")
    parser.add_argument(
        "--model", type=Path, help="folder of the trained model (default: the one that ships for the difficulty)"
    )
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--difficulty", default="standard", choices=tuple(DIFFICULTIES))
    parser.add_argument("--videos", type=int, default=135, help="up to 26 questions about each")
    parser.add_argument("--only", default="", help="regular expression that names rows of the table")
    parser.add_argument(
        "--answers-only", action="store_true", help="save answers, draw nothing: one of several processes"
    )
    parser.add_argument("--times", action="store_true", help="measure prefill times instead")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run(args, Console())


if __name__ == "__main__":
    main()
