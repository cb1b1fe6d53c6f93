"""Frames sampled from files of many kinds."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_files import flat, noise_shots, numbered, numbers, turn, write_file

from segmo.errors import OptionError
from segmo.report.timeline import Timeline
from segmo.video import Clip, fetch, read


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("ramp") / "ramp.mp4", numbered(100), g="12")


@pytest.mark.parametrize("fps", [1.0, 2.0, 3.0, 5.0, 25.0, 60.0])
def test_a_sample_is_the_frame_that_is_shown_at_its_time(ramp: Path, fps: float) -> None:
    seen: list[tuple[int, int]] = []
    clip = read(ramp, fps, progress=lambda done, total: seen.append((done, total)))
    rate = min(fps, 25.0)
    assert clip.fps == rate
    np.testing.assert_allclose(clip.seconds, np.arange(round(4 * rate)) / rate)
    assert numbers(clip.frames) == [int(second * 25 + 1e-6) for second in clip.seconds]
    assert seen[-1] == (100, 100)
    assert clip.duration == 4.0


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_other_containers_give_the_same(tmp_path: Path, suffix: str) -> None:
    clip = read(write_file(tmp_path / f"ramp{suffix}", numbered(100), bf="0"), 5.0)
    assert numbers(clip.frames) == list(range(0, 100, 5))


def test_frames_out_of_order_in_the_file_come_in_order(tmp_path: Path) -> None:
    """B-frames: the file's order is not that of time, and the first stamp is not 0."""
    path = write_file(tmp_path / "b.mp4", numbered(100), preset="medium", bf="3", g="24")
    assert numbers(read(path, 25.0).frames) == list(range(100))


def test_a_held_frame_is_sampled_as_long_as_it_is_numbers(tmp_path: Path) -> None:
    path = write_file(tmp_path / "held.mp4", numbered(4), times=[0, 0.1, 3.0, 3.1])
    clip = read(path, 2.0)
    assert clip.fps == 2.0
    assert numbers(clip.frames)[:6] == [0, 1, 1, 1, 1, 1]
    assert numbers(clip.frames)[6] == 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_video_comes_upright(tmp_path: Path, degrees: int) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # white at the top left
    path = turn(write_file(tmp_path / "turned.mp4", [picture] * 5), degrees)
    wanted = np.rot90(picture, -degrees // 90)
    clip = read(path, 25.0)
    assert clip.frames.shape[1:] == wanted.shape
    assert np.abs(clip.frames[0].astype(int) - wanted).mean() < 8
    small = read(path, 25.0, (24, 16)).frames[0]
    assert small.shape == (16, 24, 3)
    corner = {0: small[:4, :4], 90: small[:4, -4:], 180: small[-4:, -4:], 270: small[-4:, :4]}[degrees]
    assert corner.mean() > 240


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (63, 47), (130, 2), (17, 333)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    pictures = noise_shots([20, 20], width, height)
    path = write_file(tmp_path / "odd.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    clip = read(path, 25.0)
    assert clip.frames.shape == (40, height, width, 3)
    assert np.abs(clip.frames[-1].astype(int) - pictures[-1]).mean() < 3
    assert read(path, 5.0, (9, 7)).frames.shape == (8, 7, 9, 3)


def test_one_frame(tmp_path: Path) -> None:
    clip = read(write_file(tmp_path / "one.mp4", flat([120])), 1.0)
    assert len(clip.frames) == 1
    assert clip.cuts == ()
    assert clip.seconds.tolist() == [0.0]


def test_a_limit_spreads_the_samples_over_the_whole_file(ramp: Path) -> None:
    clip = read(ramp, 25.0, max_frames=8)
    assert numbers(clip.frames) == [int(number * 12.5) for number in range(8)]
    assert clip.fps == 2.0
    assert read(ramp, 25.0, max_frames=1).seconds.tolist() == [0.0]


def test_pixels_can_be_limited(ramp: Path) -> None:
    frames = read(ramp, 1.0, max_pixels=1000).frames
    assert frames.shape[1] * frames.shape[2] <= 1000
    assert frames.shape[2] / frames.shape[1] == pytest.approx(64 / 48, rel=0.1)
    assert read(ramp, 1.0, max_pixels=10**9).frames.shape[1:] == (48, 64, 3)


@given(wanted=st.lists(st.integers(0, 19), min_size=1, unique=True))
def test_fetched_frames_are_those_that_reading_gives(ramp: Path, ramp_clip: Clip, wanted: list[int]) -> None:
    chosen = ramp_clip.only(sorted(wanted))
    np.testing.assert_array_equal(fetch(ramp, chosen.seconds.tolist(), (32, 24)), chosen.frames)


@pytest.fixture(scope="module")
def ramp_clip(ramp: Path) -> Clip:
    return read(ramp, 5.0, (32, 24))


def test_memory_holds_sampled_frames_only(tmp_path: Path) -> None:
    """Numpy's memory is traced: 30 samples of 24 KB, and not 1,200 frames of 2.7 MB in colour in all."""
    path = write_file(tmp_path / "many.mp4", noise_shots([300] * 4, 128, 96))
    tracemalloc.start()
    clip = read(path, 1.0, max_frames=30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(clip.frames) == 30
    assert peak < 3 * clip.frames.nbytes + 2_000_000 < 1200 * 128 * 96 * 3 / 4


def test_stages_are_recorded(ramp: Path) -> None:
    timeline = Timeline()
    read(ramp, 1.0, timeline=timeline)
    assert set(timeline.seconds()) == {"index", "decode", "scenes"}
    assert "decode" in str(timeline)
    read(ramp, 1.0, scenes=None, timeline=(plain := Timeline()))
    assert set(plain.seconds()) == {"index", "decode"}


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_not_positive_is_refused(ramp: Path, fps: float) -> None:
    with pytest.raises(OptionError, match="more than 0 frames per second"):
        read(ramp, fps)


def test_a_limit_below_one_is_refused(ramp: Path) -> None:
    with pytest.raises(OptionError, match="at least one frame"):
        read(ramp, max_frames=0)
