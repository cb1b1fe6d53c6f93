"""Scenes: those of PySceneDetect alone, however a file is cut into chunks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenedetect import FrameTimecode, SceneManager, open_video
from scenedetect.common import Timecode
from scenedetect.detectors import AdaptiveDetector
from video_files import flat, noise_shots, write_file

from segmo.demo.clips import clip_path
from segmo.demo.repeat import repeat_file
from segmo.errors import OptionError
from segmo.video import Clip, SceneOptions, read
from segmo.video.clip import ROUNDING
from segmo.video.index import build_index
from segmo.video.read import plan_spans
from segmo.video.scenes import find_cuts

BIKES = (30, 76, 137, 187, 242)


def detected_alone(path: Path, **options: float) -> list[float]:
    """Seconds of the cuts that PySceneDetect finds by itself."""
    manager = SceneManager()
    manager.add_detector(AdaptiveDetector(**options))
    manager.detect_scenes(open_video(str(path), backend="pyav"))
    return [cut.seconds for cut in manager.get_cut_list(show_warning=False)]


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repeat_file(clip_path("bikes"), 65, tmp_path_factory.mktemp("long") / "long.mp4")


@pytest.fixture(scope="module")
def one_pass(long_file: Path) -> Clip:
    return read(long_file, 2.0, (32, 16), workers=1)


def test_cuts_of_the_clips_are_those_of_pyscenedetect() -> None:
    bikes = read(clip_path("bikes"), 1.0, (32, 16))
    assert bikes.cut_frames == BIKES
    assert bikes.cuts == tuple(frame / 25 for frame in BIKES)
    assert bikes.cuts == pytest.approx(detected_alone(clip_path("bikes")))
    assert read(clip_path("bigbuckbunny"), 1.0, (32, 16)).cuts == ()


@pytest.mark.parametrize(
    "options",
    [{"adaptive_threshold": 1.5}, {"min_scene_len": 50}, {"min_content_val": 60.0}, {"window_width": 4}],
    ids=lambda options: next(iter(options)),
)
def test_options_are_those_of_pyscenedetect(options: dict[str, float]) -> None:
    found = read(clip_path("bikes"), 1.0, (32, 16), scenes=SceneOptions(**options))  # type: ignore[arg-type]
    assert found.cuts == pytest.approx(detected_alone(clip_path("bikes"), **options))


def test_a_hundred_cuts_a_minute(tmp_path: Path) -> None:
    path = write_file(tmp_path / "fast.mp4", noise_shots([15] * 34))
    clip = read(path, 2.0)  # a cut every 0.6 seconds
    assert clip.cut_frames == tuple(range(15, 34 * 15, 15))
    assert clip.cuts == pytest.approx(detected_alone(path))
    assert clip.scene_F.tolist() == [int(second / 0.6 + 1e-6) for second in clip.seconds]


def test_variable_frame_rate_has_the_cuts_of_pyscenedetect(tmp_path: Path) -> None:
    steps = np.random.default_rng(1).choice([0.02, 0.04, 0.12], 200)
    path = write_file(tmp_path / "vfr.mp4", noise_shots([40, 70, 60, 30]), times=np.cumsum(steps).tolist())
    clip = read(path, 5.0)
    assert clip.cut_frames == (40, 110, 170)
    assert clip.cuts == pytest.approx(detected_alone(path), abs=1e-4)


def test_a_video_without_cuts_is_one_scene(tmp_path: Path) -> None:
    clip = read(write_file(tmp_path / "still.mp4", flat([90] * 50)), 5.0)
    assert clip.cuts == ()
    assert clip.scenes == [(0.0, 2.0)]
    assert not clip.scene_F.any()


def test_one_pass_over_a_long_file_finds_each_round_of_it(one_pass: Clip) -> None:
    assert one_pass.cut_frames == tuple(250 * played + cut for played in range(7) for cut in BIKES)


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_chunks_find_what_one_pass_finds(long_file: Path, one_pass: Clip, workers: int) -> None:
    """Chunks start at keyframes, and an encoder puts keyframes at cuts, so borders do fall on cuts."""
    spans = plan_spans(build_index(long_file), workers)
    assert len(spans) == workers
    clip = read(long_file, 2.0, (32, 16), workers=workers)
    assert clip.cut_frames == one_pass.cut_frames
    assert clip.cuts == one_pass.cuts
    np.testing.assert_array_equal(clip.frames, one_pass.frames)
    np.testing.assert_array_equal(clip.seconds, one_pass.seconds)
    assert clip.duration == one_pass.duration == 70


def test_a_border_of_two_chunks_can_be_a_cut(long_file: Path, one_pass: Clip) -> None:
    borders = {span.start for workers in (2, 3, 7) for span in plan_spans(build_index(long_file), workers)}
    assert any(abs(border - cut) < ROUNDING for border in borders for cut in one_pass.cuts)


@given(
    changes=st.lists(st.one_of(st.floats(0, 20), st.floats(10, 255), st.just(0.0)), min_size=1, max_size=80),
    window=st.integers(1, 4),
    shortest=st.integers(0, 20),
    least=st.sampled_from([0.0, 10.0, 15.0]),
)
def test_frames_that_change_little_decide_nothing(
    changes: list[float], window: int, shortest: int, least: float
) -> None:
    """The detector finds the same cuts when it is given all frames."""
    options = SceneOptions(2.0, least, shortest, window)
    whole = AdaptiveDetector(2.0, shortest, window, least)
    whole._calculate_frame_score = lambda timecode, frame_img: frame_img
    times = [number / 25 for number in range(len(changes))]
    expected = [
        number - window
        for number, score in enumerate(changes)
        if whole.process_frame(FrameTimecode(Timecode(number, Fraction(1, 25)), 25.0), score)
    ]
    assert [cut for cut, _ in find_cuts(times, changes, 25.0, options)] == expected


@given(cuts=st.lists(st.floats(0.1, 9.9), max_size=5, unique=True), seconds=st.floats(0, 10))
def test_the_scene_of_a_sample_is_the_one_that_holds_its_time(cuts: list[float], seconds: float) -> None:
    cuts.sort()
    clip = Clip(Path("any"), np.zeros((1, 1, 1, 3), np.uint8), np.array([seconds]), 1.0, 10.0, tuple(cuts))
    start, end = clip.scenes[int(clip.scene_F[0])]
    assert start - 2 * ROUNDING <= seconds <= end


@pytest.mark.parametrize(
    "options", [{"adaptive_threshold": 0}, {"min_content_val": -1}, {"min_scene_len": -1}, {"window_width": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        SceneOptions(**options)
