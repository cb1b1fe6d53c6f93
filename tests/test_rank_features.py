"""CAS's numbers and the kept features, when each rank has encoded its own frames, are those of one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from crew import Crew
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_features import Video, numbers

from segmo.runtime.features import scan_video
from segmo.runtime.frame_fit import Whole, frame_fit
from segmo.runtime.novelty import scene_novelty


@pytest.fixture(scope="module", params=[2, 4])
def crew(request) -> Iterator[Crew]:
    crew = Crew(request.param)
    yield crew
    crew.close()


videos = st.builds(
    Video,
    frames=st.lists(st.tuples(st.sampled_from([0, 0, 2]), st.integers(1, 4)), min_size=1, max_size=7).map(tuple),
    cuts=st.lists(st.integers(1, 30), max_size=4).map(tuple),
    owners=st.lists(st.integers(0, 3), min_size=5, max_size=5).map(tuple),
    seed=st.integers(0, 1000),
    nan=st.booleans(),
)


@given(videos)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spread_features_give_the_numbers_of_one_process(crew, video):
    results = crew.run(numbers, video)
    (frame, cell), embeds = video.layout(), video.embeddings()
    novelty, similarity, _ = scan_video(embeds[None], frame[None], cell[None])
    novelty = scene_novelty(embeds[None], novelty, frame[None], cell[None], video.scene()[None])
    at = (cell >= 0).nonzero()[:, 0]
    whole = Whole(len(at), embeds[at].mean(0))
    fit = frame_fit(embeds[-video.question :], embeds, at.numpy(), frame[at].numpy(), len(video.frames), whole)
    expected = {"novelty": novelty[0], "similarity": similarity[0], "fit": fit}
    for one in results:
        assert bool(one["missing"]) == video.nan
        for name, value in expected.items():
            torch.testing.assert_close(one[name], value)
            assert torch.equal(one[name], results[0][name])
        assert torch.equal(one["dealt"], embeds[one["positions"]])
        flagged = frame[one["positions"]] == 0
        assert torch.equal(one["flagged"], embeds[one["positions"]][flagged])
