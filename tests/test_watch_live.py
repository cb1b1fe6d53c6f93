"""A memory of a video that goes on: a camera, and questions meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from watch_models import Loaded, frames_of, watched_models

import segmo


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    return watched_models(tmp_path_factory)


def test_a_camera_is_asked_now_and_then(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    frames = frames_of(12)
    answers = list(
        segmo.live(
            model,
            processor,
            iter(frames),
            question="What?",
            every=6.0,
            fps=2.0,
            chunk=4,
            skip=False,
            generation={"max_new_tokens": 2},
        )
    )
    assert [answer.seconds for answer in answers] == [6.0, 12.0, 18.0, 24.0]
    assert answers[-1].frames == 48
    assert answers[-1].skipped == 0
    assert answers[-1].memory.summary()["frames"] == 24


def test_a_camera_may_fill_the_same_memory_with_every_frame(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    frames = frames_of(4)

    def one_buffer() -> Iterator[NDArray[np.uint8]]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    novelty = []
    for camera in (iter(frames), one_buffer()):
        (answer,) = segmo.live(model, processor, camera, question="What?", every=1e9, fps=2.0, skip=False)
        novelty.append(torch.cat([block.novelty for block in answer.memory.watcher.held()]))
    assert torch.equal(*novelty)


def test_frames_that_come_too_fast_are_skipped_and_counted(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    answers = list(
        segmo.live(
            model,
            processor,
            iter(frames_of(50)),
            question="What?",
            every=1e9,
            chunk=2,
            waiting=4,
            generation={"max_new_tokens": 1},
        )
    )
    assert answers[-1].skipped > 0
    assert answers[-1].frames + answers[-1].skipped == 200
    assert answers[-1].memory.summary()["seconds"] == answers[-1].seconds  # what was skipped took its time, too


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_frames_behind_skipped_ones_are_shown_later(loaded: dict[str, Loaded], family: str) -> None:
    model, processor = loaded[family]
    frames = frames_of(2)
    memory = segmo.watch(model, processor, frames[:4], fps=2.0)
    memory.extend(frames[4:], skipped=10)
    assert memory.summary()["seconds"] == 9
    content = [{"type": "video"}, {"type": "text", "text": "What?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    metadata = {"total_num_frames": 18, "fps": 2.0, "frames_indices": [*range(4), *range(14, 18)]}
    wanted = processor(text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False)["input_ids"][0]
    watched = torch.cat([block.ids for block in memory.watcher.held()]).tolist()
    assert watched == torch.as_tensor(wanted).tolist()[: len(watched)]


def test_a_broken_camera_says_so(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield from frames_of(1)
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(segmo.live(model, processor, camera(), question="What?", every=1e9, chunk=4, skip=False))


def test_questions_come_from_another_thread_while_the_video_goes_on(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    memory = segmo.watch(model, processor, frames_of(2))
    found: list[str] = []

    def ask() -> None:
        for _ in range(4):
            found.extend(memory.ask(["What?"], max_new_tokens=2))

    thread = threading.Thread(target=ask)
    thread.start()
    for seed in range(4):
        memory.extend(frames_of(1, seed=seed))
    thread.join()
    assert len(found) == 4
    assert memory.summary()["frames"] == 12


def test_an_answer_during_which_the_video_goes_on_is_read_again(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    frames, more = frames_of(2), frames_of(2, seed=3)

    class GoesOn:
        """A streamer, while whose first token comes the video goes on."""

        def __init__(self, memory: segmo.Memory) -> None:
            self.memory, self.seen = memory, 0

        def put(self, tokens: torch.Tensor) -> None:
            del tokens
            self.seen += 1
            if self.seen == 2:
                self.memory.extend(more)

        def end(self) -> None:
            """No more."""

    during, between = (segmo.watch(model, processor, frames, keep=0.4) for _ in range(2))
    first = during.ask("Who?", max_new_tokens=4, streamer=GoesOn(during))
    assert between.ask("Who?", max_new_tokens=4) == first
    between.extend(more)
    for memory in (during, between):
        memory.ask("What is behind it?", max_new_tokens=4)
    assert during.turns == between.turns
    assert during.talk.said is not None
    assert between.talk.said is not None
    for found, wanted in zip(during.talk.said, between.talk.said, strict=True):
        torch.testing.assert_close(found, wanted)
