"""Memories of real frames through real processors: words, chats, files, cameras, and caches for ``generate``."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ask_models import FAMILIES
from video_files import noise_shots, write_file
from watch_models import Loaded, frames_of, new_ids, watched_models, whole_prompt

import segmo
from segmo.errors import CacheError, OptionError, PromptError


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """A tiny model and its processor of each family."""
    return watched_models(tmp_path_factory)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_in_parts_are_the_model_itself(loaded: dict[str, Loaded], family: str) -> None:
    model, processor = loaded[family]
    frames, question = frames_of(3), "Who walks past the bicycle?"
    inputs = whole_prompt(processor, frames, question)
    wanted = processor.tokenizer.decode(new_ids(model, inputs)[0], skip_special_tokens=True).strip()
    memory = segmo.watch(model, processor, frames[:4], fps=2.0, segments=1, keep=1.0)
    memory.extend(frames[4:10])
    memory.extend(frames[10:])
    watched = torch.cat([block.ids for block in memory.watcher.held()])
    assert watched.tolist() == inputs["input_ids"][0, : len(watched)].tolist()
    assert memory.ask(question, max_new_tokens=5) == wanted
    assert memory.summary()["seconds"] == pytest.approx(6.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_for_generate_is_the_model_itself(loaded: dict[str, Loaded], family: str) -> None:
    model, processor = loaded[family]
    frames, question = frames_of(2), "What is red?"
    inputs = whole_prompt(processor, frames, question)
    memory = segmo.watch(model, processor, inputs, segments=1, keep=1.0)
    wanted = new_ids(model, inputs)
    beams = new_ids(model, inputs, num_beams=2)
    new_ids(model, whole_prompt(processor, frames_of(1, seed=3), "Another prompt in between"))
    assert torch.equal(new_ids(model, inputs, past_key_values=memory.cache(question)), wanted)
    short = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(new_ids(model, short, past_key_values=memory.cache(question)), wanted)
    assert torch.equal(new_ids(model, short, past_key_values=memory.cache(question), num_beams=2), beams)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_for_generate_and_ask_are_one(loaded: dict[str, Loaded], family: str) -> None:
    model, processor = loaded[family]
    frames, question = frames_of(4), "What is red?"
    memory = segmo.watch(model, processor, frames, keep=0.4)
    inputs = whole_prompt(processor, frames, question)
    found = new_ids(model, inputs, past_key_values=memory.cache(question))
    assert processor.tokenizer.decode(found[0], skip_special_tokens=True).strip() == memory.ask(
        question, max_new_tokens=5
    )
    cache = memory.cache(question, keep=0.1)
    assert cache.get_seq_length() == memory.summary()["tokens"]
    held = memory.summary()["tokens"] - memory.summary()["video_tokens"] + int(0.1 * memory.summary()["video_tokens"])
    assert cache.layers[0].keys.shape[2] == held


def test_a_cache_refuses_what_it_cannot_continue(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    memory = segmo.watch(model, processor, frames_of(2))
    other = whole_prompt(processor, frames_of(4), "What?")
    with pytest.raises(CacheError, match="hold an image or a video"):
        new_ids(model, other, past_key_values=memory.cache("What?"))
    longer = segmo.watch(model, processor, frames_of(4))
    part = whole_prompt(processor, frames_of(2), "What? " * 200)
    with pytest.raises(CacheError, match=r"the prompt has \d+ video tokens where the memory has"):
        new_ids(model, part, past_key_values=longer.cache("What?"))
    padded = whole_prompt(processor, frames_of(2), "What?")
    for name, value in (("input_ids", 3), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        padded[name] = torch.nn.functional.pad(padded[name], (2, 0), value=value)
    with pytest.raises(CacheError):
        new_ids(model, padded, past_key_values=memory.cache("What?"))


def test_a_question_that_sees_nothing_is_told(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    memory = segmo.watch(model, processor, frames_of(2))
    with pytest.warns(UserWarning, match="nothing of the video is seen"):
        memory.ask("What?", keep=1e-4, max_new_tokens=1)


def test_a_chat_goes_on_and_selects_anew(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_5_vl"]
    memory = segmo.watch(model, processor, frames_of(4), keep=0.3)
    first = memory.ask("Who is it?", max_new_tokens=4)
    known = memory.talk.ids[:]
    second = memory.ask("And what is behind it?", keep=0.1, max_new_tokens=4)
    assert [turn["role"] for turn in memory.turns] == ["user", "assistant"] * 2
    assert memory.turns[1]["content"][0]["text"] == first
    assert memory.turns[3]["content"][0]["text"] == second
    script = memory.script
    assert script is not None
    assert len(known) < len(memory.talk.ids)
    memory.extend(frames_of(1, seed=7))
    assert isinstance(memory.ask("What now?", max_new_tokens=2), str)
    assert len(memory.turns) == 6


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_questions_in_one_batch_are_those_one_by_one(loaded: dict[str, Loaded], family: str) -> None:
    model, processor = loaded[family]
    memory = segmo.watch(model, processor, frames_of(4), keep=0.3)
    questions = ["Who?", "What is behind the red bus, and where does it go?", "Which animal wakes up?"]
    together = memory.ask(questions, max_new_tokens=4)
    assert not memory.turns
    alone = []
    for question in questions:
        alone.append(memory.ask(question, max_new_tokens=4))
        memory.forget()
    assert together == alone
    memory.ask("Where?", max_new_tokens=3)
    assert len(memory.ask(questions, max_new_tokens=3)) == 3
    assert len(memory.turns) == 2


@pytest.mark.parametrize(
    ("family", "place"),
    [("qwen2_vl", "device"), ("qwen2_5_vl", "disk"), ("qwen3_vl", "disk"), ("llava_onevision", "host")],
)
def test_a_memory_comes_back_and_goes_on(loaded: dict[str, Loaded], family: str, place: str, tmp_path: Path) -> None:
    model, processor = loaded[family]
    frames, more, question = frames_of(3), frames_of(2, seed=5), "What is red?"
    folder = {"folder": tmp_path / "live"} if place == "disk" else {}
    memory = segmo.watch(model, processor, frames, keep=0.4, watch_keep=0.8, place=place, **folder)
    memory.ask("Who?", max_new_tokens=3)
    memory.save(tmp_path / "film.memory")
    memory.forget()
    wanted = memory.ask(question, max_new_tokens=5)
    back = segmo.Memory.load(model, tmp_path / "film.memory")
    assert back.turns[0]["content"][-1]["text"] == "Who?"
    back.forget()
    assert back.ask(question, max_new_tokens=5) == wanted
    assert {**back.summary(), "place": place} == memory.summary()
    for each in (memory, back):
        each.forget()
        each.extend(more)
    assert back.ask(question, max_new_tokens=5) == memory.ask(question, max_new_tokens=5)
    if place == "disk":
        on_disk = segmo.Memory.load(model, tmp_path / "live", place="disk")
        assert on_disk.ask(question, max_new_tokens=5) == back.turns[1]["content"][0]["text"]


def test_a_memory_is_saved_with_its_own_processor(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    """Also in the place of a memory that had another."""
    model, processor = loaded["qwen2_vl"]
    segmo.watch(model, processor, frames_of(2)).save(tmp_path)
    other = copy.deepcopy(processor)
    other.chat_template = processor.chat_template + "one word: "
    memory = segmo.watch(model, other, frames_of(2))
    memory.save(tmp_path)
    again = segmo.Memory.load(model, tmp_path)
    assert again.processor.chat_template == other.chat_template
    assert again.ask("What?", max_new_tokens=3) == memory.ask("What?", max_new_tokens=3)
    shutil.rmtree(tmp_path)
    memory.save(tmp_path)
    segmo.Memory.load(model, tmp_path, processor).save(tmp_path)
    assert segmo.Memory.load(model, tmp_path).processor.chat_template == processor.chat_template


def test_two_memories_in_one_folder(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    """The one that was written last is there, as a whole."""
    model, processor = loaded["qwen2_vl"]
    one, other = (segmo.watch(model, processor, frames_of(n), place="disk", folder=tmp_path) for n in (4, 6))
    one.extend(frames_of(2))
    assert segmo.Memory.load(model, tmp_path).summary()["frames"] == one.summary()["frames"]
    other.extend(frames_of(2))
    assert segmo.Memory.load(model, tmp_path).summary()["frames"] == other.summary()["frames"]
    assert other.ask("What?", max_new_tokens=2)


def test_files_of_other_rates_keep_their_times_or_are_refused(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model, processor = loaded["qwen3_vl"]
    slow = write_file(tmp_path / "slow.mp4", noise_shots([1] * 12), fps=1)
    fast = write_file(tmp_path / "fast.mp4", noise_shots([5] * 4), fps=10)
    memory = segmo.watch(model, processor, slow)
    memory.extend(fast)  # read at the slow one's rate
    assert memory.watcher.seconds == [float(at) for at in range(0, 14, 2)]
    memory = segmo.watch(model, processor, fast)
    with pytest.raises(PromptError, match="Watch both with fps=1"):
        memory.extend(slow)
    assert memory.watcher.seconds == [0.0, 1.0]
    memory.extend(fast)
    assert memory.watcher.seconds == [0.0, 1.0, 2.0, 3.0]


def test_a_stale_memory_is_refused_by_name(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model, processor = loaded["qwen2_vl"]
    memory = segmo.watch(model, processor, frames_of(2))
    memory.save(tmp_path)
    with pytest.raises(CacheError, match="watched with segments='scene'"):
        segmo.Memory.load(model, tmp_path, segments=3)
    with pytest.raises(CacheError, match="watched with watch_keep=1"):
        segmo.Memory.load(model, tmp_path, watch_keep=0.5)
    with pytest.raises(OptionError, match="no option 'kep'"):
        segmo.Memory.load(model, tmp_path, kep=0.5)
    index = json.loads((tmp_path / "memory.json").read_text())
    assert index["identity"]["program"].startswith(f"SegMo {segmo.__version__} ")
    for program in ("SegMo 0.0.1 (format 2)", None):
        index["identity"]["program"] = program
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "memory.json").write_text(json.dumps(index))
        with pytest.raises(CacheError, match=f"written by {re.escape(str(program))}"):
            segmo.Memory.load(model, tmp_path / "other")
    with pytest.raises(CacheError, match="family qwen2_vl"):
        segmo.Memory.load(loaded["qwen3_vl"][0], tmp_path)
    with pytest.raises(CacheError, match=r"torch\.float32"):
        segmo.Memory.load(loaded["qwen2_vl"][0].to(torch.bfloat16), tmp_path)
    loaded["qwen2_vl"][0].to(torch.float32)
    with pytest.raises(CacheError, match="holds no memory"):
        segmo.Memory.load(model, tmp_path / "nowhere")
    with pytest.raises(CacheError, match="weights have changed"):
        memory.ask("What?")


def test_other_weights_are_told_apart(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model, processor = loaded["qwen2_5_vl"]
    memory = segmo.watch(model, processor, frames_of(2))
    memory.save(tmp_path)
    weight = model.model.language_model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[-1, -1] += 0.5
    try:
        with pytest.raises(CacheError, match="other weights"):
            segmo.Memory.load(model, tmp_path)
        with pytest.raises(CacheError, match="weights have changed"):
            memory.ask("What?")
    finally:
        with torch.no_grad():
            weight[-1, -1] -= 0.5


def test_a_save_that_is_broken_off_leaves_the_old_memory(
    loaded: dict[str, Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded["qwen2_vl"]
    memory = segmo.watch(model, processor, frames_of(2))
    memory.save(tmp_path)
    wanted = memory.summary()
    memory.extend(frames_of(1, seed=4))
    monkeypatch.setattr("segmo.memory.saving.write_index", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        memory.save(tmp_path)
    assert segmo.Memory.load(model, tmp_path).summary() == wanted
    monkeypatch.undo()
    memory.save(tmp_path)
    assert segmo.Memory.load(model, tmp_path).summary() == memory.summary()
    assert not list(tmp_path.glob("*.partial"))


def test_a_process_that_is_killed_leaves_a_whole_memory(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model, processor = loaded["qwen2_vl"]
    keep_out = tmp_path / "model.safetensors"
    keep_out.write_text("not a memory's")
    segmo.watch(model, processor, frames_of(2), place="disk", folder=tmp_path)
    for round_number in range(2):
        child = os.fork()
        if child == 0:
            memory = segmo.Memory.load(model, tmp_path, processor, place="disk")
            for seed in range(1000):
                memory.extend(frames_of(1, seed=seed))
            os._exit(0)
        time.sleep(0.5 + 0.17 * round_number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        back = segmo.Memory.load(model, tmp_path, processor, place="disk")
        summary = back.summary()
        assert summary["held_video_tokens"] == summary["video_tokens"] == 16 * summary["frames"]
        assert back.ask("What?", max_new_tokens=1) is not None
    assert keep_out.exists()


@pytest.mark.parametrize("place", ["device", "disk"])
def test_watching_that_is_broken_off_never_happened(loaded: dict[str, Loaded], tmp_path: Path, place: str) -> None:
    model, processor = loaded["qwen2_5_vl"]
    where = {"place": place, "folder": tmp_path} if place == "disk" else {}
    frames, more = frames_of(2), frames_of(3, seed=5)
    memory, straight = (segmo.watch(model, processor, frames, keep=0.4, limit=20_000, **own) for own in (where, {}))
    memory.ask("Who?", max_new_tokens=3)
    before = memory.summary()
    calls: list[int] = []

    def broken_off(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = model.model.language_model.layers[0].register_forward_pre_hook(broken_off)
    with pytest.raises(KeyboardInterrupt):
        memory.extend(more)
    hook.remove()
    assert memory.summary() == before
    if place == "disk":
        assert {**segmo.Memory.load(model, tmp_path, place="disk").summary(), "turns": 2} == before
    for each in (memory, straight):
        each.forget()
        each.extend(more)
    assert {**memory.summary(), "place": "device"} == straight.summary()
    assert memory.ask("What is red?", max_new_tokens=5) == straight.ask("What is red?", max_new_tokens=5)


def test_questions_that_cannot_be_asked(loaded: dict[str, Loaded]) -> None:
    model, processor = loaded["qwen2_vl"]
    memory = segmo.watch(model, processor, frames_of(1))
    with pytest.raises(PromptError, match="empty"):
        memory.ask("  ")
    with pytest.raises(PromptError, match="must not hold"):
        memory.ask("what is <|video_pad|>?")
    with pytest.raises(PromptError, match="uint8"):
        memory.extend(np.zeros((2, 32, 32, 3)))
    with pytest.raises(PromptError, match="a memory is of one video"):
        memory.extend(np.zeros((2, 16, 32, 3), np.uint8))
