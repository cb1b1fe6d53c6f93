"""A whole video: long ones in several chunks at a time, with the scenes of one pass."""

from __future__ import annotations

import math
import os
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from segmo.checked import check_count, is_whole
from segmo.errors import OptionError
from segmo.report.timeline import Timeline
from segmo.video.chunk import Chunk, Frames, read_chunk
from segmo.video.clip import Clip
from segmo.video.decode import Span
from segmo.video.given import Given, as_source
from segmo.video.index import build_index
from segmo.video.packets import Damage
from segmo.video.pixels import Picture, fitted
from segmo.video.sample import check_rate, plan_samples
from segmo.video.scenes import SceneOptions, change, find_cuts
from segmo.video.source import stage_error
from segmo.video.times import Index

DETECTOR = SceneOptions()
STEP = 16  # frames from one report of progress to the next
LONG = 20.0  # seconds from which a file is read in chunks

Progress = Callable[[int, int], None]


def read(
    source: Given,
    fps: float = 1.0,
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    scenes: SceneOptions | None = DETECTOR,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
    timeline: Timeline | None = None,
) -> Clip:
    """Reads a video: the frame shown at every multiple of ``1 / fps`` seconds, and where scenes start.

    The video is decoded once, frame by frame; only sampled frames stay in memory, so with ``max_frames`` memory does
    not grow with its length. Scenes are found on the way. Files of 20 seconds and more are read in ``workers``
    stretches at the same time; the result is the same.

    Args:
        source: a path, an address, bytes, a folder of pictures, a list of pictures, an array or a decoder; all forms
            are listed at :func:`segmo.video.given.as_source`. Pictures without times of their own are taken as sampled
            already, at ``fps``.
        fps: frames to sample per second. A video with fewer frames per second gives what it has.
        size: (width, height) to scale to; that of the video as a player shows it when None.
        max_pixels: without ``size``, scale pictures down to at most so many pixels.
        max_frames: sample at most so many frames, spread evenly over the whole video.
        start, end: seconds of the part to sample, both included. Times are those in the whole video; scenes are those
            of the part.
        scenes: options of the scene detector, None for no scenes.
        workers: stretches at the same time; one per processor when None.
        progress: called with (frames decoded and compared, frames in the file).
        timeline: gets the stages "index", "decode" and "scenes".

    Raises:
        VideoError: there is no such file, it is not a video, or no frame of it can be decoded.
        OptionError: an argument has another type or is out of range, or the part is empty.
    """
    check_rate(fps)
    _check_form(size, max_pixels, scenes, workers)
    source, timeline = as_source(source), Timeline() if timeline is None else timeline
    with timeline.measure("index"):
        index = build_index(source, fps)
    samples = plan_samples(index, fps, max_frames, start, end)
    target = size or fitted(*index.size, max_pixels)
    pictures: list[Picture] = []

    def run(span: Span) -> Chunk:
        pictures.append(Picture(target, index.stored, index.transfer))
        return read_chunk(source, index, span, samples, frames, pictures[-1], scenes, step, timeline)

    spans = plan_spans(index, len(os.sched_getaffinity(0)) if workers is None else workers, start, end)
    for planned in (spans, [Span(spans[0].start, spans[-1].end)]):
        frames, step = Frames(samples), _counter(progress, len(index.times))
        pictures.clear()
        with ThreadPoolExecutor(len(planned), "segmo-video") as pool:
            chunks = list(pool.map(run, planned))
        if _joined(chunks):
            break
        index = replace(index, seeks=False)  # what seems a keyframe is none: once more, from the start
    pixels, numbers = frames.found()
    times, cuts = _join(chunks, index.rate, scenes)
    if pixels is None or not times:
        raise stage_error(source, "has no frame that can be decoded")
    damage = Damage(sum(chunk.damage.packets for chunk in chunks), any(chunk.damage.broken_off for chunk in chunks))
    whole = times[-1] >= float(index.times[-1]) - index.slack
    notes = _notes(damage, index, len(times)) if start is None and end is None else damage.notes()
    return Clip(
        Path(str(source)),
        pixels,
        numbers / samples.rate,
        samples.rate,
        index.duration if whole or end is not None else times[-1] + 1 / index.rate,
        cuts=tuple(seconds for _, seconds in cuts),
        cut_frames=tuple(number for number, _ in cuts),
        notes=tuple(dict.fromkeys([*index.notes, *notes, *(note for each in pictures for note in each.notes)])),
        index=replace(index, seeks=False) if damage.notes() else index,  # seeking in it may end at another frame
        damaged=bool(damage.notes()),
        source=source,
    )


def _check_form(size: object, max_pixels: object, scenes: object, workers: object) -> None:
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else []
    if size is not None and (len(sides) != 2 or not all(is_whole(side) and side > 0 for side in sides)):
        raise OptionError(f"size is {size!r}; it must be (width, height) in pixels, or None")
    for name, count in (("max_pixels", max_pixels), ("workers", workers)):
        if count is not None:
            check_count(name, count)
    if scenes is not None and not isinstance(scenes, SceneOptions):
        raise OptionError(f"scenes is {scenes!r}; it must be segmo.video.SceneOptions(...), or None for no scenes")


def plan_spans(index: Index, workers: int, start: float | None = None, end: float | None = None) -> list[Span]:
    """Stretches of about one length that begin at keyframes; one for a short video or one without keyframes.

    Args:
        index: of the video.
        workers: stretches at most.
        start, end: seconds of a part; the first stretch begins with the frame that is shown at its start.
    """
    first = 0.0
    if start is not None and start > 0:
        first = float(index.times[max(0, int(np.searchsorted(index.times, start + index.slack, side="right")) - 1)])
    last = math.inf if end is None or end >= index.duration else end + 2 * index.slack
    length = min(last, index.duration) - first
    if workers <= 1 or length < LONG or not index.seeks:
        return [Span(first, last)]
    wanted = [first + length * part / workers for part in range(1, workers)]
    nearest = {float(index.keyframes[np.abs(index.keyframes - at).argmin()]) for at in wanted}
    borders = [first, *sorted(each for each in nearest if first < each < last), last]
    return [Span(*border) for border in pairwise(borders)]


def _joined(chunks: Sequence[Chunk]) -> bool:
    """Whether each stretch began with the frame at which the one before ended."""
    return all(before.tail is not None and before.tail.same(after.head) for before, after in pairwise(chunks))


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


def _notes(damage: Damage, index: Index, decoded: int) -> tuple[str, ...]:
    missing = len(index.times) - decoded
    found = damage.notes()
    return (*found, f"{missing} of {len(index.times)} frames are missing") if missing > 0 and found else found
