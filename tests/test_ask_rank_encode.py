"""A video file under torchrun: each rank encodes its share of the frames, and has the features of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ask_models import write_model
from crew import Crew
from rank_ask import features
from video_files import noise_shots, write_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(3)
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of seven frames of the language model or more, and of fewer than there are ranks."""
    folder = tmp_path_factory.mktemp("videos")
    shots = {"long": [60, 45], "short": [10]}
    return [write_file(folder / f"{name}.mp4", noise_shots(each, 48, 32)) for name, each in shots.items()]


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_every_rank_has_what_one_process_has(crew: Crew, family: str, videos: list[Path], tmp_path: Path) -> None:
    model = write_model(family, tmp_path)
    alone = features(0, 1, model, videos)
    everyone = crew.run(features, model, videos)
    for number, (expected, frames, _) in enumerate(alone):
        shares = [one[number][1] for one in everyone]
        assert sum(shares) == max(frames, crew.world)  # a rank without a frame looks at the first
        assert max(shares) - min(shares) <= 1
        for one in everyone:
            mine = one[number][0]
            torch.testing.assert_close(mine.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
            assert torch.equal(mine.pooled, everyone[0][number][0].pooled)
            for layer, other in zip(mine.deepstack, expected.deepstack, strict=True):
                torch.testing.assert_close(layer, other, rtol=1e-4, atol=1e-5)


def test_what_one_rank_alone_has_on_its_disk_is_encoded_by_all(crew: Crew, videos: list[Path], tmp_path: Path) -> None:
    """The first rank keeps features; with a disk of its own, no other finds them."""
    model = write_model("qwen2_vl", tmp_path / "model")
    for _, *again in crew.run(features, model, [videos[0], videos[0]], tmp_path):
        assert again[0][1] > 0
        assert not again[0][2]
    shared = features(0, 1, model, [videos[0]], tmp_path)  # as rank 0, whose disk it is
    assert shared[0][1:] == (0, True)
