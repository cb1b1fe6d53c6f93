"""Whatever a file is made of, its frames and times are those of a plain decode from start to end."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_files import noise_shots, sequential, write_file

from segmo.video import fetch, read
from segmo.video.times import ROUNDING

# Container, encoder, pixels, options, and whether it takes any times.
KINDS = [
    (".mp4", "h264", "yuv420p", {}, True),
    (".mp4", "h264", "yuv420p", {"preset": "medium", "bf": "3"}, True),
    (".mkv", "h264", "yuv444p", {"preset": "medium", "bf": "2", "x264-params": "open-gop=1"}, True),
    (".mkv", "vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}, True),
    (".webm", "vp8", "yuv420p", {"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}, True),
    (".mov", "mjpeg", "yuvj420p", {}, True),
    (".ts", "mpeg2video", "yuv420p", {"bf": "2"}, False),
    (".ts", "h264", "yuv420p", {"preset": "medium", "bf": "2"}, True),
    (".avi", "mpeg4", "yuv420p", {}, False),
    (".avi", "mpeg4", "yuv420p", {"bf": "2"}, False),
    (".mkv", "ffv1", "bgra", {}, True),
    (".gif", "gif", "pal8", {}, False),
]


@dataclass(frozen=True)
class Film:
    """How a file is made."""

    kind: int
    size: tuple[int, int]
    rate: int
    shots: tuple[int, ...]
    steps: tuple[int, ...] | None  # ticks between frames, for a variable rate
    ticks: int
    group: int
    aspect: tuple[int, int]
    degrees: int


films = st.builds(
    Film,
    kind=st.integers(0, len(KINDS) - 1),
    size=st.sampled_from([(64, 48), (16, 16), (62, 34), (48, 80)]),
    rate=st.sampled_from([5, 10, 12, 24, 25, 30, 50]),
    shots=st.lists(st.integers(1, 14), min_size=1, max_size=5).map(tuple),
    steps=st.none() | st.lists(st.sampled_from([1, 1, 2, 3, 7, 40]), min_size=4, max_size=9).map(tuple),
    ticks=st.sampled_from([25, 30, 600, 1000, 12_800, 90_000]),
    group=st.integers(1, 20),
    aspect=st.sampled_from([(1, 1), (1, 1), (4, 3), (1, 2)]),
    degrees=st.sampled_from([0, 0, 90, 180, 270]),
)


def make(path: Path, film: Film) -> Path:
    _, codec, pix_fmt, options, any_times = KINDS[film.kind]
    pictures = noise_shots(film.shots, *film.size)
    times = None
    if any_times and film.steps:
        step = max(1, film.ticks // 30)  # of about a thirtieth of a second
        steps = [film.steps[number % len(film.steps)] * step for number in range(len(pictures) - 1)]
        times = [tick / film.ticks for tick in accumulate(steps, initial=0)]

    def mark(stream: Any) -> None:
        if film.aspect != (1, 1) and codec != "gif":
            stream.codec_context.sample_aspect_ratio = Fraction(*film.aspect)
        if film.degrees and path.suffix == ".mp4" and hasattr(type(stream), "set_display_rotation"):
            stream.set_display_rotation(film.degrees)

    rate = film.rate if codec != "mpeg2video" else 25
    given = {**options, **({"g": str(film.group)} if codec not in ("mjpeg", "ffv1", "gif") else {})}
    return write_file(path, pictures, rate, times, codec, pix_fmt, ticks=film.ticks, mark=mark, **given)


@settings(max_examples=80)
@given(film=films, fps=st.sampled_from([0.7, 1.0, 2.0, 7.0, 30.0]), workers=st.integers(1, 3))
def test_frames_and_times_are_those_of_a_plain_decode(
    tmp_path_factory: pytest.TempPathFactory, film: Film, fps: float, workers: int
) -> None:
    path = make(tmp_path_factory.getbasetemp() / f"film{KINDS[film.kind][0]}", film)
    times, frames, end = sequential(path)
    clip = read(path, fps, workers=workers)
    assert clip.fps <= fps
    assert clip.duration == pytest.approx(end, abs=2 / film.rate)
    assert clip.seconds.tolist() == pytest.approx([number / clip.fps for number in range(len(clip.seconds))])
    assert len(clip.seconds) == max(1, int(np.ceil(clip.duration * clip.fps - 1e-3)))
    for seconds, found in zip(clip.seconds, clip.frames, strict=True):
        shown = [place for place, time in enumerate(times) if time <= seconds + ROUNDING]
        nearly = {shown[-1], max(0, int(np.searchsorted(times, seconds - ROUNDING, side="right")) - 1)}
        assert any(same(found, frames[place], film) for place in nearly), (seconds, shown[-1])
    some = clip.seconds[:: max(1, len(clip.seconds) // 3)]
    np.testing.assert_array_equal(fetch(path, some.tolist()), clip.frames[:: max(1, len(clip.seconds) // 3)])


def same(found: np.ndarray, frame: np.ndarray, film: Film) -> bool:
    """Equal to the last bit where neither the shape nor the direction is another one as stored."""
    if found.shape == frame.shape and np.array_equal(found, frame):
        return True
    return found.shape != frame.shape or (film.degrees == 180 and np.array_equal(found, frame[::-1, ::-1]))
