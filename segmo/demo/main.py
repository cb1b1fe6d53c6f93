"""The whole demo: questions to the trained model; then a longer video, four prefills side by side, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

import segmo
from segmo.checked import made_folder
from segmo.demo.answers import answer_side_by_side, answer_table, save_answer_picture
from segmo.demo.edit import Shot, cut_list, cut_times, write_video
from segmo.demo.memory import memory_table, time_memory
from segmo.demo.model import build_model
from segmo.demo.picture import draw_kept, save_picture
from segmo.demo.prefill import Prompt, Timing, encode_video, four_ways, kept_cells, time_prefill
from segmo.demo.processor import CELL, build_processor, encode_prompt
from segmo.demo.style import clock
from segmo.demo.tables import scene_table, timing_table
from segmo.options import Options
from segmo.video import Clip, read

QUESTION = "When does the taxi come into view?"
CELLS = (14, 8)  # tokens of a frame, width and height
FPS = 1.0  # sampled frames per second
TRAINED = "Trained weights: relevance and answers are real."
RANDOM = "Random weights: times, scenes and repeated tokens are real, relevance means nothing."


class _Bars:
    """Progress bars, one for each step, with a callback that moves the newest."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )

    def start(self, what: str) -> Callable[[int, int], None]:
        """Add a bar; the returned function takes (steps done, steps in all)."""
        task = self.progress.add_task(what.ljust(30), total=None)
        return lambda done, total: self.progress.update(task, completed=done, total=total)


def _prepare(
    bars: _Bars, shots: tuple[Shot, ...], question: str, out: Path
) -> tuple[Clip, Qwen2_5_VLProcessor, Qwen2_5_VLForConditionalGeneration, Prompt]:
    """The video, the model and the prompt with the video's features."""
    path = write_video(shots, out, bars.start("write the video"))
    size = (CELLS[0] * CELL, CELLS[1] * CELL)
    video = read(path, FPS, size, scenes=None, progress=bars.start("read it back"))
    step = bars.start("processor and model")
    processor = build_processor()
    inputs = encode_prompt(processor, video, question, CELLS)
    step(1, 2)
    model = build_model(processor)
    step(2, 2)
    step = bars.start("vision encoder")
    prompt = encode_video(model, inputs)
    step(1, 1)
    return video, processor, model, prompt


def _compare(
    bars: _Bars, model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, keep: float, segments: int | str
) -> list[Timing]:
    """The four ways, timed."""
    ways = four_ways(keep, segments)
    return [time_prefill(model, prompt, way, bars.start(f"prefill: {way.name}")) for way in ways]


def run_demo(
    out: Path,
    keep: float = 0.25,
    segments: int | str = "scene",
    seconds: int = 180,
    question: str = QUESTION,
) -> None:
    """Run the demo and print what it finds; takes about two minutes on two CPU cores with the defaults.

    Args:
        out: folder for the video and ``kept.png``; made if missing.
        keep: fraction of the video tokens to keep.
        segments: "scene", a number of segments, or "equal:N".
        seconds: length of the video. Eager prefill grows with its square.
        question: what is asked about the video.

    Raises:
        SegMoError: the clips are not installed, or an option is out of range.
    """
    Options(keep=keep, segments=segments)  # what is wrong is refused now, not after a minute of work
    made_folder(out)
    console = Console(highlight=False)
    console.print("[bold]SegMo demo.[/bold]\n")
    sample, answered = answer_side_by_side(keep, segments)
    console.print(answer_table(answered))
    console.print(f"A model of a million parameters, weak at some kinds (docs/sceneqa.md). {TRAINED}", markup=False)
    console.print(f"picture: {save_answer_picture(sample, answered, out)}\n", markup=False)

    console.print(f"[bold]Prefill of a longer video.[/bold] {RANDOM}\n")
    shots = cut_list(seconds)
    bars = _Bars(console)
    with bars.progress:
        video, processor, model, prompt = _prepare(bars, shots, question, out)
        timings = _compare(bars, model, prompt, keep, segments)
        report = segmo.last_report()
        remembered = time_memory(model, processor, prompt, keep, segments, bars.start("a memory, five questions"))
    scenes = report.to_dict()["scenes"]
    seconds_per_frame = float(prompt["second_per_grid_ts"][0])

    console.print(
        f"\n{video.path}: {clock(seconds)} minutes, {len(shots)} shots, {len(video.frames)} sampled frames; "
        f"for the model {int(prompt['video_grid_thw'][0, 0])} frames of {CELLS[0]} x {CELLS[1]} tokens",
        markup=False,
    )
    console.print(f"question: {question}\n", markup=False)
    console.print(timing_table(timings))
    console.print(memory_table(remembered, timings))
    table, summary = scene_table(scenes, shots, seconds_per_frame)
    console.print(table, summary, "", sep="\n")
    console.print(str(report), "", sep="\n", markup=False)

    merge, patch = processor.video_processor.merge_size, processor.video_processor.temporal_patch_size
    figure = draw_kept(
        video.frames[::patch],
        scenes,
        kept_cells(report.prefill, prompt["video_grid_thw"][0], merge),
        seconds_per_frame=seconds_per_frame,
        cuts=cut_times(shots),
        caption=f"{clock(seconds)} minutes of video. {question} {RANDOM}",
    )
    console.print(f"picture: {save_picture(figure, out / 'kept.png')}", markup=False)
