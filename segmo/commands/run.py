"""``segmo run``: a video file and a question, or a file of them, to an answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segmo.commands import flags

if TYPE_CHECKING:
    from rich.console import Console

    from segmo.ask.ask import Asker
    from segmo.ask.cache import TensorCache
    from segmo.ask.settings import Settings
    from segmo.compiler.launch import Launch
    from segmo.video.given import Source

GIB = 1 << 30


def run(
    video: Annotated[str | None, typer.Argument(help="a video file, an address, or a folder of pictures")] = None,
    question: Annotated[str | None, typer.Argument(help="what is asked about it")] = None,
    model: flags.Model = None,
    batch: Annotated[
        Path | None, typer.Option(help='JSON lines of {"video": ..., "question": ...} (paths count from its folder)')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where a batch's answers go (default: out/run/BATCH)")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="run full attention beside it")] = False,
    fps: flags.Fps = None,
    max_frames: flags.MaxFrames = 768,
    frames: Annotated[
        int | None, typer.Option(help="encode so many of them, chosen by scene and question (default: all)")
    ] = None,
    relevance: Annotated[
        Path | None, typer.Option(help="CLIP or SigLIP folder that scores scenes for --frames (default: the model)")
    ] = None,
    max_new_tokens: flags.NewTokens = 64,
    keep: flags.Keep = 0.25,
    segments: flags.Segments = "scene",
    context: flags.Context = 2,
    tails: flags.Tails = 2,
    scorer: flags.Scorer = "embedding",
    layer: flags.Layer = 3,
    balance: flags.Balance = 0.5,
    lowering: flags.Lowering = "auto",
    pipeline: flags.Pipeline = None,
    disable: flags.Disable = None,
    report: Annotated[Path | None, typer.Option(help="folder for the report: JSON, and a page with the frames")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="a pass that does not apply is an error")] = False,
    adaptive_threshold: Annotated[float, typer.Option(help="a cut is so many times its neighbours' change")] = 3.0,
    min_content_val: Annotated[float, typer.Option(help="least change of a cut, 0 to 255")] = 15.0,
    min_scene_len: Annotated[int, typer.Option(help="frames between two cuts at least")] = 15,
    workers: Annotated[int | None, typer.Option(help="stretches of a long file decoded at a time")] = None,
    cache: Annotated[bool, typer.Option(help="keep features of videos on disk for further questions")] = True,
    cache_folder: Annotated[Path | None, typer.Option(help="where (default: the user's cache folder)")] = None,
    cache_gib: Annotated[float, typer.Option(help="GiB on disk at most")] = 4.0,
    dtype: flags.Dtype = "auto",
    device: flags.Device = None,
) -> None:
    """Answer a question about a video file: decode, find scenes, encode, keep what matters, prefill, decode.

    Prints the answer, the seconds of each stage and the tokens kept. A second question about the same video neither
    decodes nor encodes it again. Under torchrun the segments are spread over the ranks.
    """
    from rich.console import Console

    from segmo.ask.cache import TensorCache, default_folder
    from segmo.ask.settings import Settings, checked_question
    from segmo.checked import dtype_named, is_number, made_folder
    from segmo.compiler.launch import launched
    from segmo.errors import OptionError
    from segmo.video import SceneOptions
    from segmo.video.given import as_source

    options = flags.parsed(
        segments,
        disable,
        keep=keep,
        context=context,
        tails=tails,
        scorer=scorer,
        layer=layer,
        balance=balance,
        lowering=lowering,
        pipeline=pipeline,
        report=report,
        strict=strict,
    )
    scenes = SceneOptions(adaptive_threshold, min_content_val, min_scene_len)
    settings = Settings(options, fps, max_frames, scenes, workers, max_new_tokens, compare, None, frames, relevance)
    if dtype != "auto":
        dtype_named(dtype)
    if not (is_number(cache_gib) and is_number(cache_gib * GIB)):
        raise OptionError(f"--cache-gib is {cache_gib}; it must be a number of GiB")
    store = TensorCache(cache_folder or default_folder(), int(cache_gib * GIB)) if cache else None
    if report is not None:
        made_folder(report)
    if batch is not None and (video is not None or question is not None):
        raise OptionError("--batch takes videos and questions from its file; give no others")
    if batch is None and out is not None:
        raise OptionError("--out is where a batch's answers go; one answer is printed (--report writes what was done)")
    if batch is None and (video is None or question is None):
        raise OptionError('give a video file and a question: segmo run VIDEO "question"')
    if question is not None:
        checked_question(question)
    if video is not None:
        source = as_source(video)
        source.check()  # now, and not after the model has been loaded
    with launched(device) as launch:
        console = Console(highlight=False, quiet=not launch.speaks)
        if not launch.speaks:
            settings = dataclasses.replace(settings, options=dataclasses.replace(options, report=None))
        if batch is not None:
            if launch.ranks.world > 1:
                raise OptionError("--batch runs on one rank; start it without torchrun, on a part of the file per GPU")
            _batch(console, settings, store, model, dtype, launch, batch, out or Path("out/run") / batch.name)
        elif video is not None and question is not None:
            _one(console, settings, store, model, dtype, launch, source, question)


def _asker(
    console: Console, settings: Settings, store: TensorCache | None, model: Path | None, dtype: str, launch: Launch
) -> tuple[Asker, Any]:
    from segmo.ask.ask import Asker
    from segmo.ask.checkpoint import load
    from segmo.ask.console import Bars

    loaded = load(model, dtype, str(launch.device))
    if loaded.note:
        console.print(loaded.note, style="yellow", markup=False)
    bars = Bars(console)
    return Asker(loaded, settings, store, progress=bars, ranks=launch.ranks), bars


def _one(
    console: Console,
    settings: Settings,
    store: TensorCache | None,
    model: Path | None,
    dtype: str,
    launch: Launch,
    video: Source,
    question: str,
) -> None:
    from rich.markup import escape

    from segmo.ask.console import as_dict, sentences, stage_table

    asker, bars = _asker(console, settings, store, model, dtype, launch)
    for word in unknown_words(asker, question):
        console.print(f"[yellow]It does not know the word {escape(repr(word))}.[/yellow]", markup=True)
    with bars.progress:
        answer = asker.ask(video, question)
    console.print(f"[bold]answer:[/bold] {escape(answer.text)}", markup=True)
    if answer.full is not None:
        console.print(f"[bold]full attention:[/bold] {escape(answer.full.text)}", markup=True)
    for line in sentences(answer):
        console.print(line, markup=False)
    console.print(stage_table(answer))
    console.print(str(asker.timeline), markup=False)
    _report(asker, settings, [as_dict(answer)])


def _batch(
    console: Console,
    settings: Settings,
    store: TensorCache | None,
    model: Path | None,
    dtype: str,
    launch: Launch,
    source: Path,
    out: Path,
) -> None:
    import json

    from segmo.ask.batch import read_lines, run_batch

    total = len(read_lines(source))
    asker, bars = _asker(console, settings, store, model, dtype, launch)
    earlier: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    with bars.progress:
        for record in run_batch(asker, source, out, None, earlier.append):
            records.append(record)
            text = record["answer"] if "answer" in record else f"error: {record['error']}"
            console.print(f"{len(earlier) + len(records)}/{total} line {record['line']}: {text}", markup=False)
    failed = sum("error" in record for record in records)
    console.print(f"{out}: {len(earlier)} answered before, {len(records) - failed} now, {failed} failed", markup=False)
    if asker.timeline.events:
        console.print(str(asker.timeline), markup=False)
    _report(asker, settings, [json.loads(json.dumps(record)) for record in records])
    if failed:
        raise typer.Exit(1)


def unknown_words(asker: Asker, question: str) -> list[str]:
    """Words of the question that the model's tokenizer has no token for; only a small vocabulary has such."""
    tokenizer = asker.loaded.processor.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    return [word for word in dict.fromkeys(question.split()) if unknown in tokenizer(word)["input_ids"]]


def _report(asker: Asker, settings: Settings, answers: list[dict[str, Any]]) -> None:
    """Puts the time line and the answers into the report, and writes it if a folder was given."""
    import segmo

    if settings.options.report is None or not answers:
        return
    report = segmo.last_report()
    report.timeline, report.answers = asker.timeline, answers
    report.save()
