"""What ``segmo eval`` does: full attention and SegMo's own ways on a part of SceneQA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from segmo.checked import check_count, made_folder
from segmo.errors import OptionError
from segmo.options import Options
from segmo.sceneqa.evaluate import build_set, evaluate, time_methods
from segmo.sceneqa.methods import Method, answer_full, both_method, cas_method, lsp_method
from segmo.sceneqa.model import load_model, weights_for
from segmo.sceneqa.plot import draw_results
from segmo.sceneqa.results import result_table, summarise, write_csv
from segmo.sceneqa.task import DIFFICULTIES, check_split


def own_methods(budgets: Sequence[float], segments: int | str) -> list[Method]:
    """Full attention, LSP with and without context, CAS and CAS+LSP at each budget, with SegMo's defaults."""
    return [
        Method("full attention", 1.0, answer_full),
        lsp_method(segments, False, "LSP, no context"),
        lsp_method(segments, True, "LSP"),
        *(cas_method(keep) for keep in budgets),
        *(both_method(keep, segments=segments) for keep in budgets),
    ]


def run_evaluation(
    out: Path, split: str, difficulty: str, videos: int, budgets: Sequence[float], segments: int | str
) -> None:
    """Answer with the weights that were trained on such videos and print the table.

    Writes ``results.jsonl``, ``results.csv`` and ``results.png`` into ``out``.

    Raises:
        OptionError: there is no such difficulty, or a budget or number of segments is out of range.
        SegMoError: there is no such split, or scikit-learn is missing.
    """
    if difficulty not in DIFFICULTIES:
        raise OptionError(f"there is no difficulty {difficulty!r}; there are {', '.join(DIFFICULTIES)}")
    check_split(split)
    check_count("--videos", videos)
    made_folder(out)
    for keep in budgets:
        Options(keep=keep, segments=segments)
    methods = own_methods(budgets, segments)
    console = Console(highlight=False)
    model, processor = load_model(weights_for(DIFFICULTIES[difficulty]))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def start(what: str) -> Callable[[int, int], None]:
            task = progress.add_task(what.ljust(20), total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        questions = build_set(model, processor, split, DIFFICULTIES[difficulty], videos, progress=start("videos"))
        records = evaluate(model, methods, questions, out / "results.jsonl", start("answers"))
        times = time_methods(model, methods, questions, progress=start("times"))
    rows = summarise(records, times)
    console.print(result_table(rows, questions.label))
    write_csv(rows, out / "results.csv")
    draw_results(rows, questions.label).savefig(out / "results.png")
    console.print(f"written to {out}: results.jsonl, results.csv, results.png", markup=False)
