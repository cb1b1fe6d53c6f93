"""The demo's video: real clips, the cut list, and the file written from it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmo.demo.clips import CLIPS, clip_path, read_clip
from segmo.demo.edit import CUT_LIST, FPS, SIZE, Shot, cut_list, cut_times, write_video
from segmo.errors import SegMoError
from segmo.video import read

SHOTS = (
    Shot("bus", "bikes", 0, 30, 1.0, 0.5),
    Shot("driver", "bikes", 30, 56, 0.6, 1.0),
    Shot("rabbit", "bigbuckbunny", 0, 60, 1.4, 0.25),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(SHOTS, tmp_path_factory.mktemp("demo"))


def test_clips_are_the_real_ones_cut_to_the_aspect_ratio() -> None:
    for name, frames in zip(CLIPS, (250, 132), strict=True):
        pixels = read_clip(name, 70, 40)
        assert pixels.shape == (frames, 40, 70, 3)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 10


def test_a_cut_of_the_clip_is_where_the_cut_list_says() -> None:
    """The largest change between frames 25 and 35 of "bikes" is the cut at which the shot "driver" starts."""
    pixels = read_clip("bikes", 70, 40)[25:36].astype(float)
    change = np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2, 3))
    assert 25 + int(change.argmax()) + 1 == 30


def test_a_clip_that_is_not_shipped_is_an_error() -> None:
    with pytest.raises(SegMoError, match=r"no clip carphone\.mp4"):
        clip_path("carphone")


@given(seconds=st.one_of(st.integers(10, 900), st.floats(10, 900)))
def test_a_cut_list_lasts_as_long_as_asked(seconds: float) -> None:
    shots = cut_list(seconds)
    assert sum(shot.frames for shot in shots) == pytest.approx(seconds * FPS, abs=1)
    assert all(shot.frames > 0 for shot in shots)
    times = cut_times(shots)
    assert len(times) == len(shots) - 1
    assert times == sorted(set(times))
    assert all(0 < time < seconds for time in times)


def test_the_whole_cut_list_is_three_minutes_of_existing_frames() -> None:
    assert cut_list(180) == CUT_LIST
    frames = dict(zip(CLIPS, (250, 132), strict=True))
    for shot in CUT_LIST:
        sources = [shot.source(frame) for frame in range(shot.frames)]
        assert shot.start <= min(sources) <= max(sources) < shot.stop <= frames[shot.clip]


@pytest.mark.parametrize("seconds", [9, 0, float("nan"), float("inf")])
def test_a_video_that_is_too_short_is_refused(seconds: float) -> None:
    with pytest.raises(SegMoError, match="at least 10 seconds"):
        cut_list(seconds)


@given(start=st.integers(0, 50), span=st.integers(1, 30), speed=st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_shots_play_forwards_and_backwards_without_a_jump(start: int, span: int, speed: float) -> None:
    shot = Shot("any", "bikes", start, start + span, 4.0, speed)
    sources = [shot.source(frame) for frame in range(shot.frames)]
    assert sources[0] == start
    assert all(start <= source < start + span for source in sources)
    assert all(abs(b - a) <= 1 for a, b in pairwise(sources))


def test_the_file_holds_the_shots_and_is_written_once(written: Path) -> None:
    with av.open(str(written)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == SIZE
        assert stream.average_rate == FPS
        assert sum(1 for _ in container.decode(stream)) == sum(shot.frames for shot in SHOTS)
    stamp = written.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    assert write_video(SHOTS, written.parent, lambda done, total: seen.append((done, total))) == written
    assert written.stat().st_mtime_ns == stamp
    assert seen == [(75, 75)]
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_frames_show_the_shot_of_their_time(written: Path) -> None:
    video = read(written, 5.0, SIZE)
    clips = {name: read_clip(name, *SIZE) for name in CLIPS}
    for seconds, shot in zip((0.0, 1.0, 1.6), SHOTS, strict=True):
        index = video.index_at(seconds)
        within = round((video.seconds[index] - seconds) * FPS)
        expected = clips[shot.clip][shot.source(within)].astype(float)
        assert np.abs(video.frames[index] - expected).mean() < 8  # of 255; H.264 loses a little
