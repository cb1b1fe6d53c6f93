"""``segmo watch``, ``segmo ask`` and ``segmo chat``: a video watched once, and asked as often as one likes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segmo.commands import flags

if TYPE_CHECKING:
    from rich.console import Console

    from segmo.memory.memory import Memory

Context = Annotated[int, typer.Option(help="most novel scenes before, whose head frames a segment sees")]
Tails = Annotated[int, typer.Option(help="last frames of each segment before that a segment sees")]
WatchKeep = Annotated[float, typer.Option(help="fraction of each segment's video tokens that is remembered")]
Keep = Annotated[float, typer.Option(help="fraction of the video tokens that a question sees")]
WATCHED = "video.txt"  # in a memory's folder: the path of what was watched
SHOWN = 5  # scenes that are named below an answer


def watch(
    video: Annotated[Path, typer.Argument(help="the video file")],
    out: Annotated[Path | None, typer.Option(help="folder of the memory (default: VIDEO.memory)")] = None,
    model: flags.Model = None,
    fps: flags.Fps = None,
    max_frames: flags.MaxFrames = 768,
    segments: flags.Segments = "scene",
    context: Context = 2,
    tails: Tails = 1,
    watch_keep: WatchKeep = 1.0,
    dtype: flags.Dtype = "auto",
    device: flags.Device = None,
) -> None:
    """Watch a video file once, and keep its keys and values in a folder for segmo ask."""
    from segmo.errors import CacheError

    console = _console()
    options = {"segments": flags.number_or_name(segments), "context": context, "tails": tails}
    folder = out or _beside(video)
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder} is a file, and a memory is a folder; name another one with --out")
    if out is None:
        _check_whose(folder, video)
    memory = _watched(console, video, model, fps, max_frames, watch_keep, dtype, device, options)
    memory.save(folder)
    (folder / WATCHED).write_bytes(os.fsencode(video.resolve()))  # names need not be UTF-8
    console.print(f"{folder}: {_described(memory)}", markup=False)


def _beside(video: Path) -> Path:
    """The folder of a video's memory where none is named; a dot in a folder's name begins no suffix."""
    named = video if video.name not in ("", "..") else video.resolve()
    return named.parent / f"{named.name}.memory" if named.is_dir() else named.with_suffix(".memory")


def _check_whose(folder: Path, video: Path) -> None:
    """Refuses a folder that holds the memory of another video."""
    from segmo.errors import CacheError

    known = folder / WATCHED
    other = Path(os.fsdecode(known.read_bytes())) if known.exists() else None
    if other not in (None, video.resolve()):
        raise CacheError(f"{folder} is the memory of another video, {other}; name a folder with --out")


def ask(
    memory: Annotated[Path, typer.Argument(help="folder that segmo watch wrote")],
    question: Annotated[str, typer.Argument(help="what is asked about the video")],
    model: flags.Model = None,
    keep: Keep = 0.25,
    max_new_tokens: flags.NewTokens = 64,
    dtype: flags.Dtype = "auto",
    device: flags.Device = None,
) -> None:
    """Ask about a video that was watched; it is neither decoded, nor encoded, nor read by the model again."""
    from segmo.memory.memory import Memory

    console = _console()
    loaded = _loaded(console, model, dtype, device)
    found = Memory.load(loaded.model, memory, loaded.processor, keep=keep)
    found.forget()
    answer = found.ask(question, max_new_tokens=max_new_tokens)
    _say(console, answer)
    console.print(looked_at(found), markup=False)


def chat(
    video: Annotated[Path, typer.Argument(help="a video file, or a folder that segmo watch wrote")],
    model: flags.Model = None,
    fps: flags.Fps = None,
    max_frames: flags.MaxFrames = 768,
    keep: Keep = 0.25,
    max_new_tokens: flags.NewTokens = 64,
    dtype: flags.Dtype = "auto",
    device: flags.Device = None,
) -> None:
    """Talk about a video: each question sees the turns before it, and selects anew from the whole video.

    An empty line or the end of the input ends the chat, "forget" begins another one.
    """
    from segmo.errors import PromptError
    from segmo.memory.memory import Memory

    console = _console()
    if (video / "memory.json").is_file():
        loaded = _loaded(console, model, dtype, device)
        memory = Memory.load(loaded.model, video, loaded.processor, keep=keep)
    else:
        memory = _watched(console, video, model, fps, max_frames, 1.0, dtype, device, {"keep": keep})
    console.print(_described(memory), markup=False)
    while (question := _question(console)) is not None:
        if question == "forget":
            memory.forget()
            continue
        try:
            answer = memory.ask(question, max_new_tokens=max_new_tokens)
        except PromptError as error:
            console.print(str(error), style="red", markup=False)
            continue
        _say(console, answer)
        console.print(looked_at(memory), style="dim", markup=False)


def looked_at(memory: Memory) -> str:
    """The scenes that the last answer looked at most, with their times."""
    most = sorted(memory.looked, key=lambda scene: -scene.tokens)[:SHOWN]
    shown = ", ".join(
        f"{_clock(scene.start)}-{_clock(scene.end)} ({scene.tokens} tokens)"
        for scene in sorted(most, key=lambda scene: scene.start)
    )
    more = len(memory.looked) - len(most)
    return f"looked at {shown or 'no scene'}" + (f" and {more} more" if more else "")


def _question(console: Console) -> str | None:
    try:
        found = console.input("[bold]you:[/bold] ").strip()
    except EOFError:
        return None
    return found or None


def _watched(
    console: Console,
    video: Path,
    model: Path | None,
    fps: float | None,
    max_frames: int,
    watch_keep: float,
    dtype: str,
    device: str | None,
    options: dict[str, Any],
) -> Memory:
    from segmo.memory.intake import check_fps
    from segmo.memory.watch import watch as watch_frames
    from segmo.video import read
    from segmo.video.given import as_source

    if fps is not None:
        check_fps(fps)
    as_source(video).check()  # now, and not after the model has been loaded
    loaded = _loaded(console, model, dtype, device)
    rate = loaded.fps if fps is None else fps
    with console.status("reading the video"):
        clip = read(video, rate, loaded.size, max_pixels=loaded.max_pixels, max_frames=max_frames)
    with console.status("watching"):
        return watch_frames(loaded.model, loaded.processor, clip.frames, fps=clip.fps, watch_keep=watch_keep, **options)


def _loaded(console: Console, model: Path | None, dtype: str, device: str | None) -> Any:
    from segmo.ask.checkpoint import load
    from segmo.checked import dtype_named

    if dtype != "auto":
        dtype_named(dtype)
    loaded = load(model, dtype, device)
    if loaded.note:
        console.print(loaded.note, style="yellow", markup=False)
    return loaded


def _described(memory: Memory) -> str:
    known = memory.summary()
    return (
        f"{known['seconds']:.1f} s of video in {known['scenes']} scenes; {known['held_video_tokens']:,} of "
        f"{known['video_tokens']:,} video tokens are remembered, {known['bytes'] / 1e6:.1f} MB "
        f"({known['bytes_per_second'] / 1e6:.2f} MB for a second)"
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def _say(console: Console, answer: str) -> None:
    from rich.markup import escape

    console.print(f"[bold]answer:[/bold] {escape(answer)}")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
