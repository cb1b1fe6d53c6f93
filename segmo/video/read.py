"""A whole file: long ones in several chunks at a time, with the scenes of one pass."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np

from segmo.report.timeline import Timeline
from segmo.video.chunk import Chunk, Frames, read_chunk
from segmo.video.clip import Clip
from segmo.video.decode import Damage, Span
from segmo.video.index import Index, build_index
from segmo.video.pixels import Picture
from segmo.video.sample import count_samples, sampling_rate
from segmo.video.scenes import SceneOptions, change, find_cuts
from segmo.video.source import stage_error

DETECTOR = SceneOptions()
STEP = 16  # frames from one report of progress to the next
LONG = 20.0  # seconds from which a file is read in chunks

Progress = Callable[[int, int], None]


def read(
    path: Path | str,
    fps: float = 1.0,
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int | None = None,
    max_frames: int | None = None,
    scenes: SceneOptions | None = DETECTOR,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
    timeline: Timeline | None = None,
) -> Clip:
    """Reads a video file: the frame shown at every multiple of ``1 / fps`` seconds, and where scenes start.

    The file is decoded once, frame by frame; only sampled frames stay in memory, so with ``max_frames`` memory does not
    grow with the length of the file. Scenes are found on the way. Files of 20 seconds and more are read in ``workers``
    stretches at the same time; the result is the same.

    Args:
        path: any local file that FFmpeg can read.
        fps: frames to sample per second. A file with fewer frames per second gives what it has.
        size: (width, height) to scale to; the file's own when None.
        max_pixels: without ``size``, scale pictures down to at most so many pixels.
        max_frames: sample at most so many frames, spread evenly over the whole file.
        scenes: options of the scene detector, None for no scenes.
        workers: stretches at the same time; one per processor when None.
        progress: called with (frames decoded and compared, frames in the file).
        timeline: gets the stages "index", "decode" and "scenes".

    Raises:
        VideoError: there is no such file, it is not a video, or no frame of it can be decoded.
        OptionError: ``fps`` or ``max_frames`` is out of range.
    """
    path, timeline = Path(path), Timeline() if timeline is None else timeline
    with timeline.measure("index"):
        index = build_index(path)
    rate = sampling_rate(index, fps, max_frames)
    frames = Frames(count_samples(index, rate))
    step = _counter(progress, len(index.times))
    spans = plan_spans(index, len(os.sched_getaffinity(0)) if workers is None else workers)

    def run(span: Span) -> Chunk:
        return read_chunk(path, index, span, rate, frames, Picture(size, max_pixels), scenes, step, timeline)

    with ThreadPoolExecutor(len(spans), "segmo-video") as pool:
        chunks = [chunk for chunk in pool.map(run, spans) if chunk.times]
    pixels, numbers = frames.found()
    if pixels is None:
        raise stage_error(path, "has no frame that can be decoded")
    times, cuts = _join(chunks, index.rate, scenes)
    duration = min(index.duration, times[-1] + 1 / index.rate)
    return Clip(
        path,
        pixels,
        numbers / rate,
        rate,
        duration,
        cuts=tuple(seconds for _, seconds in cuts),
        cut_frames=tuple(number for number, _ in cuts),
        notes=_notes(chunks, index, len(times)),
        index=index,
    )


def plan_spans(index: Index, workers: int) -> list[Span]:
    """Stretches of about one length that begin at keyframes; one for a short file or one without timestamps."""
    if workers <= 1 or index.duration < LONG or not index.timed:
        return [Span()]
    wanted = [index.duration * part / workers for part in range(1, workers)]
    nearest = {float(index.keyframes[np.abs(index.keyframes - at).argmin()]) for at in wanted} - {0.0}
    borders = [0.0, *sorted(nearest), float("inf")]
    return [Span(start, end) for start, end in pairwise(borders)]


def _counter(progress: Progress, total: int) -> Callable[[], None]:
    """Counts frames of all chunks."""
    lock, done = threading.Lock(), 0

    def step() -> None:
        nonlocal done
        with lock:
            done += 1
            if done == 1 or done % STEP == 0 or done >= total:
                progress(done, max(done, total))

    return step


def _join(
    chunks: Sequence[Chunk], rate: float, options: SceneOptions | None
) -> tuple[array[float], list[tuple[int, float]]]:
    """Times of all frames, and the cuts as (frame, seconds)."""
    times, changes = array("d"), array("d")
    for before, after in pairwise(chunks):
        if before.changes.last is not None and after.changes.first is not None:
            after.changes.values[0] = change(before.changes.last, after.changes.first)
    for chunk in chunks:
        times.extend(chunk.times)
        changes.extend(chunk.changes.values)
    return times, [] if options is None else list(find_cuts(times, changes, rate, options))


def _notes(chunks: Sequence[Chunk], index: Index, decoded: int) -> tuple[str, ...]:
    damage = Damage(sum(chunk.damage.packets for chunk in chunks), any(chunk.damage.broken_off for chunk in chunks))
    missing = len(index.times) - decoded
    found = damage.notes()
    return (*found, f"{missing} of {len(index.times)} frames are missing") if missing > 0 and found else found
