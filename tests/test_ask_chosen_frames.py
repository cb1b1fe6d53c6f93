"""Many questions about one file with ``--frames``: nothing is decoded, scored or encoded that was so before."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from ask_models import FAMILIES, write_model
from image_text_models import save_image_text_model
from video_files import noise_shots, numbered, write_file

from segmo.ask.cache import TensorCache
from segmo.ask.checkpoint import Checkpoint, load
from segmo.ask.chosen_frames import ChosenFrames
from segmo.ask.context import Context, Request
from segmo.ask.features import Features
from segmo.ask.settings import Settings
from segmo.options import Options
from segmo.report.timeline import Timeline

FIRST, SECOND = "What happens?", "Which animal wakes up, and what does it do then?"
SHOTS, LENGTH = 12, 20  # each shot is a second and starts with a keyframe
WANTED = 16


@dataclass
class Work:
    """What was decoded and encoded."""

    decoded: int = 0
    encoded: list[int] = field(default_factory=list)

    def done(self) -> tuple[int, int]:
        """Pictures decoded and frames encoded since the last call."""
        found = self.decoded, sum(self.encoded)
        self.decoded, self.encoded = 0, []
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(write_model(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(write_model("qwen2_vl", tmp_path_factory.mktemp("one")), device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shots = noise_shots([LENGTH] * SHOTS, 48, 32)
    return write_file(tmp_path_factory.mktemp("video") / "video.mp4", shots, fps=LENGTH, g=str(LENGTH))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts what the real decoder gives."""
    found, modules = Work(), [sys.modules[f"segmo.video.{name}"] for name in ("chunk", "fetch")]
    decode = vars(modules[0])["decode"]

    def counted(*args: Any) -> Iterator[Any]:
        for item in decode(*args):
            found.decoded += 1
            yield item

    for module in modules:
        monkeypatch.setattr(module, "decode", counted)
    return found


def count_encoder(loaded: Checkpoint, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts what the real encoder is given."""
    base = loaded.model.base_model
    original = base.get_video_features

    @functools.wraps(original)
    def counted(pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None, **more: Any) -> Any:
        given = {"pixel_values_videos": pixel_values_videos, **more}
        grid = {} if video_grid_thw is None else {"video_grid_thw": video_grid_thw}
        work.encoded.append(pixel_values_videos.shape[1] if video_grid_thw is None else int(video_grid_thw[0, 0]))
        return original(**given, **grid)

    monkeypatch.setattr(base, "get_video_features", counted)


def chosen(loaded: Checkpoint, store: TensorCache | None, frames: int = WANTED, **more: Any) -> ChosenFrames:
    settings = Settings(Options(balance=1.0), 4.0, frames=frames, workers=1, **more)
    return ChosenFrames(Context(loaded, settings, store, Timeline(), lambda stage, done, total: None))


def asked(way: ChosenFrames, video: Path, question: str) -> tuple[Features, tuple[str, ...], list[int]]:
    """Features, what came from the cache, and the numbers of the chosen pictures."""
    request = Request(video, question)
    ready = way.prepare(request)
    return *way.features(request, ready), ready.wanted.numbers.tolist()


def check_same(one: Features, other: Features) -> None:
    assert one.facts == other.facts
    torch.testing.assert_close(one.pooled, other.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.deepstack, other.deepstack, rtol=1e-4, atol=1e-5)
    assert one.text.ids.tolist() == other.text.ids.tolist()
    assert {name: value.tolist() for name, value in one.extras.items()} == {
        name: value.tolist() for name, value in other.extras.items()
    }


def test_a_second_question_decodes_and_encodes_only_frames_not_seen_before(
    loaded: Checkpoint, video: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_encoder(loaded, work, monkeypatch)
    _, cached, first = asked(chosen(loaded, TensorCache(tmp_path)), video, FIRST)
    assert cached == ()
    assert work.done() == (SHOTS * LENGTH, WANTED)  # what was scored is among what is chosen
    expected, _, second = asked(chosen(loaded, None), video, SECOND)
    work.done()

    monkeypatch.setattr(sys.modules["segmo.video.fetch"], "build_index", None)  # nor are packets read again
    way = chosen(loaded, TensorCache(tmp_path))  # as another run would
    found, cached, numbers = asked(way, video, SECOND)
    decoded, encoded = work.done()
    check_same(found, expected)
    assert numbers == second
    size = way.choice.pictures
    old = {tuple(first[i : i + size]) for i in range(0, len(first), size)}
    new = {tuple(second[i : i + size]) for i in range(0, len(second), size)} - old
    assert 0 < len(new) < WANTED
    assert encoded == len(new)
    assert 0 < decoded <= LENGTH * len(new)
    assert cached == ("scenes", "features for relevance", f"features of {WANTED - len(new)} of {WANTED} frames")
    assert "index" not in way.context.timeline.seconds()

    again, cached, _ = asked(chosen(loaded, TensorCache(tmp_path)), video, SECOND)
    assert work.done() == (0, 0)
    assert cached[-1] == f"features of {WANTED} of {WANTED} frames"
    check_same(again, expected)


def test_a_processor_that_scales_frames_by_their_number_is_followed(
    video: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen3-VL's pixels are limited over the whole video: features serve questions with as many frames."""
    loaded = load(write_model("qwen3_vl", tmp_path / "model"), device="cpu")
    loaded.processor.video_processor.size = {"shortest_edge": 64, "longest_edge": 48 * 32 * 12}
    count_encoder(loaded, work, monkeypatch)
    store = TensorCache(tmp_path / "cache")
    asked(chosen(loaded, store), video, FIRST)
    assert work.done() == (SHOTS * LENGTH, SHOTS + WANTED)  # what was scored has another size
    expected, _, _ = asked(chosen(loaded, None), video, SECOND)
    work.done()
    found, cached, _ = asked(chosen(loaded, store), video, SECOND)
    check_same(found, expected)
    assert 0 < work.done()[1] < WANTED
    assert cached[:2] == ("scenes", "features for relevance")


def test_another_number_of_frames_takes_features_from_the_same_cache(
    one: Checkpoint, video: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_encoder(one, work, monkeypatch)
    asked(chosen(one, TensorCache(tmp_path)), video, FIRST)
    work.done()
    found, cached, _ = asked(chosen(one, TensorCache(tmp_path), frames=WANTED - 4), video, FIRST)
    assert work.done() == (0, 0)
    assert found.facts.frames == 2 * (WANTED - 4)
    assert cached[-1] == f"features of {WANTED - 4} of {WANTED - 4} frames"


def test_an_image_text_model_sees_each_scene_once(
    one: Checkpoint, video: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = save_image_text_model("clip", tmp_path / "clip"), []
    for question in (FIRST, SECOND):
        way = chosen(one, TensorCache(tmp_path / "cache"), relevance=folder)
        original = way.choice.scorer.image_features  # type: ignore[attr-defined]
        monkeypatch.setattr(way.choice.scorer, "image_features", lambda p, f=original: seen.append(len(p)) or f(p))
        found, _, _ = asked(way, video, question)
        work.done()
        check_same(found, asked(chosen(one, None, relevance=folder), video, question)[0])
    assert seen == [SHOTS]


def test_a_request_that_runs_ahead_leaves_frames_to_the_one_before(
    one: Checkpoint, video: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_encoder(one, work, monkeypatch)
    way, request = chosen(one, TensorCache(tmp_path)), Request(video, FIRST)
    first = way.prepare(request)
    assert work.done() == (SHOTS * LENGTH, SHOTS)
    ahead = way.prepare(request)
    assert work.done() == (0, 0)
    way.features(request, first)
    assert work.done() == (0, WANTED - SHOTS)
    found, cached = way.features(request, ahead)
    assert work.done() == (0, 0)
    assert cached[-1] == f"features of {WANTED} of {WANTED} frames"
    check_same(found, asked(chosen(one, None), video, FIRST)[0])


def test_a_request_does_without_the_one_before_if_that_failed(one: Checkpoint, video: Path, tmp_path: Path) -> None:
    way, request = chosen(one, TensorCache(tmp_path)), Request(video, FIRST)
    way.prepare(request)
    found, _ = way.features(request, way.prepare(request))
    check_same(found, asked(chosen(one, None), video, FIRST)[0])


def test_the_cache_stays_within_its_bytes_and_the_answer_right(one: Checkpoint, video: Path, tmp_path: Path) -> None:
    store = TensorCache(tmp_path, 30_000)
    for question in (FIRST, SECOND, FIRST):
        found, _, _ = asked(chosen(one, store), video, question)
        assert store.size() <= 30_000
        check_same(found, asked(chosen(one, None), video, question)[0])


def test_two_runs_at_a_time_encode_each_frame_once(
    one: Checkpoint, video: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own store on one folder, as two processes have it."""
    count_encoder(one, work, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        ways = [chosen(one, TensorCache(tmp_path)) for _ in range(2)]
        found = list(pool.map(lambda way: asked(way, video, FIRST)[0], ways))
    assert work.done()[1] == WANTED
    check_same(*found)


def test_other_scenes_or_another_rate_are_another_film(one: Checkpoint, video: Path, tmp_path: Path) -> None:
    asked(chosen(one, TensorCache(tmp_path)), video, FIRST)
    settings = Settings(Options(balance=1.0), 2.0, frames=WANTED)
    way = ChosenFrames(Context(one, settings, TensorCache(tmp_path), Timeline(), lambda stage, done, total: None))
    found, cached, _ = asked(way, video, FIRST)
    assert "scenes" not in cached
    assert found.facts.fps == 2.0


def test_a_damaged_file_is_read_again(one: Checkpoint, work: Work, tmp_path: Path) -> None:
    """Seeking in it may end at another frame than reading it from its start."""
    data = bytearray(write_file(tmp_path / "sound.mp4", numbered(60), g="10").read_bytes())
    at = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 3
    data[at : at + 300] = bytes(range(100, 200)) * 3
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    found, _, _ = asked(chosen(one, TensorCache(tmp_path / "cache")), broken, FIRST)
    whole = work.done()[0]
    again, cached, _ = asked(chosen(one, TensorCache(tmp_path / "cache")), broken, FIRST)
    assert found.facts.notes
    assert work.done()[0] == whole > 0
    assert [name.split()[0] for name in cached] == ["features", "features"]
    check_same(found, again)
