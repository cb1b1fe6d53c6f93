"""What cannot be watched, asked, saved or loaded: refused with an error that says why, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ask_models import write_model
from transformers import AutoModelForImageTextToText, AutoProcessor
from watch_models import frames_of, whole_prompt

import segmo
from segmo.errors import CacheError, OptionError, PromptError, SegMoError

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = write_model("qwen2_vl", tmp_path_factory.mktemp("model"))
    load: Any = AutoProcessor
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), load.from_pretrained(folder)


@pytest.fixture(scope="module")
def memory(loaded: Loaded) -> segmo.Memory:
    return segmo.watch(*loaded, frames_of(2), keep=0.4)


FRAMES = frames_of(1)


@pytest.mark.parametrize(
    "video",
    [
        None,
        5,
        [],
        FRAMES / 255,
        FRAMES[0],
        FRAMES[None],
        FRAMES[:0],
        FRAMES[:, :0],
        np.moveaxis(FRAMES, -1, 1),
        np.zeros((2, 8, 4000, 3), np.uint8),
        [FRAMES[0], FRAMES[1][:16]],
        ["a.mp4", "b.mp4"],
        "nowhere.mp4",
        Path(__file__).parent,
        Path(__file__),
        {},
    ],
    ids=lambda video: repr(video)[:30],
)
def test_what_is_no_video(loaded: Loaded, memory: segmo.Memory, video: Any) -> None:
    before = memory.summary()
    with pytest.raises(SegMoError):
        segmo.watch(*loaded, video)
    with pytest.raises(SegMoError):
        memory.extend(video)
    assert memory.summary() == before


def test_outputs_that_lack_something_or_are_of_another_video(loaded: Loaded) -> None:
    model, processor = loaded
    inputs = whole_prompt(processor, frames_of(1), "What?")
    for name in ("input_ids", "pixel_values_videos", "video_grid_thw"):
        with pytest.raises(PromptError):
            segmo.watch(model, None, {key: value for key, value in inputs.items() if key != name})
    memory = segmo.watch(model, None, inputs)
    with pytest.raises(PromptError, match="a memory is of one video"):
        memory.extend({**inputs, "video_grid_thw": inputs["video_grid_thw"] * torch.tensor([1, 1, 2])})
    memory.extend(inputs)


@pytest.mark.parametrize(
    "options",
    [
        *({"fps": fps} for fps in (0, -1, True, "2", float("nan"))),
        *({"watch_keep": share} for share in (0, 2, "a", None)),
        *({"place": place} for place in (None, 5, {}, {"device": -1})),
        {"place": "disk", "folder": Path(__file__)},
        {"place": "disk", "folder": Path(__file__) / "below"},
        {"place": "disk", "folder": 5},
    ],
    ids=str,
)
def test_options_that_are_of_no_use(loaded: Loaded, options: dict[str, Any]) -> None:
    with pytest.raises(SegMoError):
        segmo.watch(*loaded, frames_of(2), **options)


def test_what_is_no_model_or_processor(loaded: Loaded) -> None:
    model, processor = loaded
    for wrong in (None, "model", model.model):
        with pytest.raises(OptionError):
            segmo.watch(wrong, processor, FRAMES)
    for wrong in ("processor", processor.tokenizer, processor.video_processor):
        with pytest.raises(OptionError, match="without"):
            segmo.watch(model, wrong, FRAMES)


@pytest.mark.parametrize(
    "how", [{"prompt_lookup_num_tokens": 2}, {"assistant_model": True}, {"use_cache": False}], ids=str
)
def test_decoding_that_would_read_the_video_again(loaded: Loaded, memory: segmo.Memory, how: dict[str, Any]) -> None:
    """transformers would feed the whole prompt, behind keys that hold it already."""
    model, processor = loaded
    how = {name: model if value is True else value for name, value in how.items()}
    inputs = whole_prompt(processor, frames_of(2), "What?")
    del inputs["pixel_values_videos"]
    with pytest.raises(SegMoError, match=r"assisted decoding|use_cache"):
        memory.ask("What?", **how)
    with pytest.raises((CacheError, TypeError), match=r"assisted decoding|use_cache"):
        model.generate(**memory.inputs("What?"), **how)
    with pytest.raises(CacheError):
        model.generate(**inputs, past_key_values=memory.cache("What?"), **how)
    assert memory.ask("What?", max_new_tokens=2, use_cache=True)
    memory.forget()


@pytest.mark.parametrize(
    "question",
    [
        *("", "  ", None, 5, 3.5, b"what", {"a": 1}, [], [[]], [""], ["a", ""], [None], [3.5], [-1], [10**9]),
        *(torch.tensor([]), torch.tensor([[3, 4], [5, 6]]), torch.tensor(3)),
        *("what is <|video_pad|>", "what is <|image_pad|>"),
    ],
    ids=lambda question: repr(question)[:30],
)
def test_what_is_no_question(memory: segmo.Memory, question: Any) -> None:
    for ask in (memory.ask, memory.inputs, memory.cache):
        with pytest.raises(PromptError):
            ask(question)
    assert not memory.turns


def test_a_cache_is_for_one_question(memory: segmo.Memory) -> None:
    with pytest.raises(PromptError, match="one question"):
        memory.cache(["Who?", "What?"])


@pytest.mark.parametrize(
    "generation",
    [
        *({"max_new_tokens": 0}, {"num_return_sequences": 2}, {"max_length": 3}, {"fooo": 1}),
        *({"input_ids": None}, {"past_key_values": None}, {"cache_implementation": "static"}),
    ],
    ids=str,
)
def test_what_generate_does_not_take(memory: segmo.Memory, generation: dict[str, Any]) -> None:
    memory.forget()
    memory.ask("Who?", max_new_tokens=1)
    turns = memory.turns
    with pytest.raises(OptionError, match=r"generate"):
        memory.ask("What?", **generation)
    assert memory.turns == turns
    memory.forget()


def test_an_answer_that_is_broken_off_was_never_asked_for(memory: segmo.Memory) -> None:
    class Interrupts:
        """A streamer behind whose first token somebody presses Ctrl-C."""

        seen = 0

        def put(self, tokens: torch.Tensor) -> None:
            del tokens
            self.seen += 1
            if self.seen == 2:
                raise KeyboardInterrupt

        def end(self) -> None:
            """No more."""

    def second(broken_off: bool) -> str:
        memory.forget()
        memory.ask("Who?", max_new_tokens=2)
        if broken_off:
            with pytest.raises(KeyboardInterrupt):
                memory.ask("And where?", max_new_tokens=4, streamer=Interrupts())
        found: str = memory.ask("And what?", max_new_tokens=4)
        return found

    assert second(True) == second(False)
    assert len(memory.turns) == 4
    memory.forget()


@pytest.mark.parametrize("skipped", [-1, 1.5, "x", True])
def test_skipped_frames_are_counted(memory: segmo.Memory, skipped: Any) -> None:
    before = memory.summary()
    with pytest.raises(OptionError, match="skipped"):
        memory.extend(FRAMES, skipped=skipped)
    assert memory.summary() == before


def _lacks_watcher(folder: Path) -> None:
    index = json.loads((folder / "memory.json").read_text())
    del index["watcher"]
    (folder / "memory.json").write_text(json.dumps(index))


def _cut(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])


def _other_index(folder: Path) -> None:
    (folder / "memory.json").write_text("[1]")


@pytest.mark.parametrize(
    "damage", [_lacks_watcher, _cut, _other_index, lambda folder: shutil.rmtree(folder / "processor")]
)
def test_a_memory_that_is_damaged(
    loaded: Loaded, memory: segmo.Memory, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    memory.save(tmp_path / "film.memory")
    damage(tmp_path / "film.memory")
    with pytest.raises(CacheError, match=r"film\.memory"):
        segmo.Memory.load(loaded[0], tmp_path / "film.memory")


def test_where_no_memory_can_be(loaded: Loaded, memory: segmo.Memory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below", None):
        with pytest.raises(SegMoError):
            memory.save(wrong)  # type: ignore[arg-type]  # that is what is wrong
        with pytest.raises(SegMoError):
            segmo.Memory.load(loaded[0], wrong)  # type: ignore[arg-type]
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    ("camera", "options"),
    [
        *((camera, {}) for camera in (None, 5, "film.mp4", Path("film.mp4"), [FRAMES[0], FRAMES[0][:16]])),
        *(([*FRAMES, *FRAMES[:, :16]], {}), (FRAMES / 255, {}), (FRAMES[..., 0], {})),
        *((FRAMES, {"every": every}) for every in (0, "x", float("nan"))),
        *((FRAMES, {"chunk": chunk}) for chunk in (0, 1.5, "x", 100)),
        *((FRAMES, {"fps": fps}) for fps in (0, "x")),
        *((FRAMES, {"question": question}) for question in ("", 5)),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_camera(loaded: Loaded, camera: Any, options: dict[str, Any]) -> None:
    with pytest.raises(SegMoError):
        list(segmo.live(*loaded, camera, **{"question": "What?", "skip": False, "chunk": 4, **options}))


def test_a_video_with_more_positions_than_the_model_has_is_told(loaded: Loaded) -> None:
    model, processor = loaded
    text = model.config.get_text_config()
    limit, text.max_position_embeddings = text.max_position_embeddings, 20
    try:
        with pytest.warns(UserWarning, match=r"this memory needs \d+ positions, and the model is made for 20") as said:
            segmo.watch(model, processor, frames_of(2), keep=0.4).extend(frames_of(1))
        assert len([each for each in said if "positions" in str(each.message)]) == 1
    finally:
        text.max_position_embeddings = limit
