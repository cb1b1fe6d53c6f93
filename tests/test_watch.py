"""A memory against its contract: one forward of the unmodified model with a dense mask, and the identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_reference import frames_of, head_novelty, memory_mask, reference_logits
from models import CELLS, END, FAMILIES, IMAGE, START, VIDEO, build, prompt
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

import segmo
from segmo.errors import OptionError, PromptError
from segmo.memory.conversation import Turn
from segmo.memory.look import look, survey
from segmo.memory.options import parse
from segmo.memory.seen import Seen
from segmo.options import Options

MODELS: dict[str, Any] = {}
START_OF_VIDEO = 8  # of Qwen3-VL's prompts: four words, a timestamp of three, and the control token


def model_of(family: str) -> Any:
    """One model of each family for the whole module; a memory changes nothing about it."""
    if family not in MODELS:
        MODELS[family] = build(family)
    return MODELS[family]


def question_of(inputs: dict[str, Tensor]) -> Tensor:
    """The ids behind the last video token."""
    ids = inputs["input_ids"][0]
    return ids[int((ids == VIDEO).nonzero()[-1]) + 1 :]


def generate(model: Any, inputs: dict[str, Any], tokens: int = 4, **more: Any) -> tuple[Tensor, Tensor]:
    """Greedy ids behind the prompt, and the logits of the first of them."""
    found = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True, **more
    )
    return found.sequences[:, inputs["input_ids"].shape[1] :], found.logits[0]


def chosen_by(memory: segmo.Memory, question: Tensor) -> Seen:
    """What a question sees under a memory's own options."""
    turn = Turn(question, question.tolist(), [], None, question.tolist())
    return look(memory.model, survey(memory.watcher), turn, memory.options.question())


def error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||."""
    return float((out - reference).norm() / reference.norm())


def mask_of(family: str, memory: segmo.Memory, inputs: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """The contract's mask for a memory: only where segments and scenes begin is taken from it."""
    watcher, cells, trailing = memory.watcher, CELLS[family], int(family == "llava_onevision")
    features = torch.cat([block.features for block in watcher.held()])
    return memory_mask(
        frames_of(inputs["input_ids"][0].tolist(), cells, trailing),
        watcher.borders,
        watcher.starts,
        {start: head_novelty(features, cells, start) for start in watcher.starts},
        memory.options.options.context,
        memory.options.options.tails,
        set(chosen.tolist()),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_remembered_in_one_segment_is_the_model(family: str) -> None:
    model, inputs = model_of(family), prompt(family, frames=9)
    ids, logits = generate(model, inputs)
    memory = segmo.watch(model, None, inputs, segments=1, keep=1.0, watch_keep=1.0)
    again, found = generate(model, memory.inputs(question_of(inputs)))
    assert torch.equal(again, ids)
    assert error(found, logits) < 1e-5
    assert torch.equal(memory.ask(question_of(inputs), max_new_tokens=4), ids[0])


@given(
    family=st.sampled_from(FAMILIES),
    frames=st.integers(1, 13),
    seed=st.integers(0, 5),
    keep=st.sampled_from([0.05, 0.25, 0.6, 1.0]),
    context=st.integers(0, 3),
    tails=st.integers(0, 2),
    segments=st.sampled_from(["scene", 1, 2, 3, "equal:4"]),
    place=st.sampled_from(["device", "host", {"device": 1 << 14, "host": None}]),
)
@settings(max_examples=25)
def test_a_question_equals_the_dense_mask_run_eagerly(
    family: str, frames: int, seed: int, keep: float, context: int, tails: int, segments: Any, place: Any
) -> None:
    model, inputs = model_of(family), prompt(family, frames=frames, seed=seed)
    memory = segmo.watch(model, None, inputs, keep=keep, context=context, tails=tails, segments=segments, place=place)
    given = memory.inputs(question_of(inputs))
    _, logits = generate(model, given, 1)
    seen = chosen_by(memory, question_of(inputs))
    assert seen.video == int(keep * memory.summary()["video_tokens"])
    mask = mask_of(family, memory, inputs, seen.at[0])
    assert error(logits, reference_logits(model, inputs, mask)) < 1e-5


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_the_choice_is_that_of_the_prefill(family: str, fresh_dynamo: None) -> None:
    model, inputs = build(family), prompt(family, frames=9)
    memory = segmo.watch(model, None, inputs, keep=0.4)
    # Nothing is known of a chat template here, so all text around the video is the prefill's question.
    ids = inputs["input_ids"][0]
    frames = torch.tensor(frames_of(ids.tolist(), CELLS[family], int(family == "llava_onevision")))
    control = torch.isin(ids, torch.tensor([VIDEO, IMAGE, START, END]))
    if family == "qwen3_vl":  # the words in front of the first frame are its timestamp
        control[:START_OF_VIDEO] |= torch.arange(START_OF_VIDEO) >= 4
    seen = chosen_by(memory, ids[(frames < 0) & ~control])
    segmo.compile(model, keep=0.4)
    generate(model, inputs, 1)
    prefill = segmo.last_report().prefill
    assert prefill is not None
    assert prefill.index is not None
    assert seen.at[0].tolist() == prefill.index[0, : len(seen)].tolist()


@given(
    family=st.sampled_from(["qwen2_vl", "qwen2_5_vl", "llava_onevision"]),
    frames=st.integers(3, 9),
    seed=st.integers(0, 3),
    turns=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.1, 0.4, 1.0])), max_size=3),
    batch=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    later=st.integers(0, 3),
    place=st.sampled_from(["device", "host"]),
)
@settings(max_examples=12)
def test_turns_and_batches_equal_the_dense_mask(
    family: str, frames: int, seed: int, turns: list[tuple[int, float]], batch: list[int], later: int, place: str
) -> None:
    """Turns of so many words with a budget each, the rest of the video before one of them, and a batch at the end."""
    model, inputs, half = model_of(family), prompt(family, frames=frames, seed=seed), frames // 2
    shown = part_of(family, inputs, 0, half)
    memory = segmo.watch(model, None, shown, place=place)
    said: list[int] = []
    rows: list[tuple[int, Tensor]] = []  # from which word on, which tokens inside the video were seen

    def check(questions: list[Tensor], keep: float) -> Tensor:
        options = memory.options.question(keep=keep)
        _, seen, arguments = memory._asked(memory.talk, questions, options)
        logits = generate(model, arguments, 1)[1]
        # The key of the last word of an answer is made by the turn behind it.
        start = max(0, len(said) - 1) if rows else 0
        for question, each, found in zip(questions, seen, logits, strict=True):
            whole = with_text(shown, [*said, *question.tolist()])
            mask = turns_mask(mask_of(family, memory, whole, each.at[0]), shown, [*rows, (start, each.at[0])])
            assert error(found[None], reference_logits(model, whole, mask)) < 1e-5
        rows.append((start, seen[0].at[0]))
        return seen[0].at[0]

    for number, (count, keep) in enumerate(turns):
        if number == later:
            memory.extend(part_of(family, inputs, half, frames))
            shown, rows = inputs, []  # what was said is read again behind the new end
        question = torch.arange(count) + 11 + 3 * number
        seen_K = check([question], keep)
        assert torch.equal(seen_K, memory._asked(memory.talk, question, memory.options.question(keep=keep))[1][0].at[0])
        said += [*question.tolist(), *memory.ask(question, keep=keep, max_new_tokens=2).tolist()]
    questions = [torch.arange(count) + 31 + 5 * at for at, count in enumerate(batch)]
    check(questions, 0.4)
    assert len(memory.ask(questions, keep=0.4, max_new_tokens=1)) == len(batch)
    assert memory.talk.ids == said
    memory.forget()
    assert not memory.turns


def with_text(shown: dict[str, Tensor], behind: list[int]) -> dict[str, Tensor]:
    """A prompt with other text behind its video."""
    ids = shown["input_ids"][0]
    row = torch.cat([ids[: int((ids == VIDEO).nonzero()[-1]) + 1], torch.tensor(behind)])[None]
    whole = {**shown, "input_ids": row, "attention_mask": torch.ones_like(row)}
    if "video_grid_thw" in shown:
        whole["mm_token_type_ids"] = torch.where(row == VIDEO, 2, 0)
    return whole


def turns_mask(mask_NN: Tensor, shown: dict[str, Tensor], rows: list[tuple[int, Tensor]]) -> Tensor:
    """A mask whose rows behind the video see inside it what their own turn chose."""
    video = int((shown["input_ids"][0] == VIDEO).nonzero()[-1]) + 1
    for start, seen_K in rows:
        mask_NN[video + start :, :video] = False
        mask_NN[video + start :, seen_K] = True
    return mask_NN


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava_onevision"])
def test_beams_and_several_answers(family: str) -> None:
    model, inputs = model_of(family), prompt(family, frames=6)
    ids = model.generate(**inputs, num_beams=3, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    memory = segmo.watch(model, None, inputs, segments=1, keep=1.0)
    found = memory.ask(question_of(inputs), num_beams=3, max_new_tokens=4)
    assert torch.equal(found, ids)
    after = memory.ask(torch.tensor([11, 12]), max_new_tokens=2)
    memory.forget()
    memory.ask(question_of(inputs), num_beams=3, num_return_sequences=2, max_new_tokens=4)
    assert memory.summary()["turns"] == 0
    assert after.shape == (2,)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava_onevision"])
@given(data=st.data())
@settings(max_examples=8)
def test_parts_give_the_memory_of_the_whole(family: str, data: st.DataObject) -> None:
    frames = data.draw(st.integers(2, 12))
    cuts = sorted(data.draw(st.sets(st.integers(1, frames - 1), max_size=3)))
    model, inputs = model_of(family), prompt(family, frames=frames, seed=data.draw(st.integers(0, 3)))
    options: dict[str, Any] = {
        "segments": data.draw(st.sampled_from(["scene", 1])),
        "watch_keep": data.draw(st.sampled_from([1.0, 0.5])),
        "keep": 0.5,
    }
    whole = segmo.watch(model, None, inputs, **options)
    parts = [part_of(family, inputs, a, b) for a, b in zip([0, *cuts], [*cuts, frames], strict=True)]
    split = segmo.watch(model, None, parts[0], **options)
    for part in parts[1:]:
        split.extend(part)
    same_memory(split, whole, exact=set(cuts) <= set(whole.watcher.borders))
    question = question_of(inputs)
    assert error(generate(model, split.inputs(question), 1)[1], generate(model, whole.inputs(question), 1)[1]) < 1e-5


def same_memory(found: segmo.Memory, wanted: segmo.Memory, exact: bool) -> None:
    """Two memories hold the same: bit for bit where segments went through the decoder alike, else to rounding."""
    assert found.summary() == wanted.summary()
    for name in ("keys", "values"):
        a, b = (torch.cat([getattr(block, name) for block in m.watcher.held()], 2) for m in (found, wanted))
        assert error(a, b) < 1e-5
        if exact:
            assert torch.equal(a, b)
    assert found.watcher.borders == wanted.watcher.borders
    assert found.watcher.behind == wanted.watcher.behind


def part_of(family: str, inputs: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """A processor's outputs for some frames of a video."""
    ids, cells = inputs["input_ids"][0], CELLS[family]
    first = int((ids == VIDEO).nonzero()[0])
    trailing = int(family == "llava_onevision")
    row = torch.cat([ids[:first], torch.full(((end - start) * cells + trailing,), VIDEO), question_of(inputs)])[None]
    part = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    pixels = inputs["pixel_values_videos"]
    if family == "llava_onevision":
        return {**part, "pixel_values_videos": pixels[:, start:end]}
    grid = inputs["video_grid_thw"][0].tolist()
    each = grid[1] * grid[2]
    part["video_grid_thw"] = torch.tensor([[end - start, *grid[1:]]])
    return {**part, "pixel_values_videos": pixels[start * each : end * each]}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_computed_behind_the_last_keys_but_for_hooks(family: str) -> None:
    model, inputs = build(family), prompt(family, frames=6)
    last, calls = model.base_model.language_model.layers[-1].mlp, []
    forward = last.forward
    last.forward = lambda *args: calls.append(1) or forward(*args)
    trimmed = segmo.watch(model, None, inputs)
    assert not calls
    hook = last.register_forward_hook(lambda *_: None)
    whole = segmo.watch(model, None, inputs)
    hook.remove()
    assert calls
    same_memory(trimmed, whole, exact=True)


def test_what_is_remembered_is_counted() -> None:
    inputs = prompt("qwen3_vl", frames=12)
    memory = segmo.watch(model_of("qwen3_vl"), None, inputs, watch_keep=0.5)
    summary = memory.summary()
    assert summary["frames"] == 12
    assert summary["video_tokens"] == 48
    assert summary["held_video_tokens"] == 24
    assert summary["held_tokens"] == summary["tokens"] - 24
    assert summary["segments"] == len(memory.watcher.borders)
    assert summary["bytes"] == sum(b.bytes for b in memory.watcher.held())
    assert summary["bytes_per_second"] == pytest.approx(summary["bytes"] / 12)


@pytest.mark.parametrize("room", [40, 1])
def test_a_limit_thins_old_segments_and_leaves_each_scene_a_token(room: int) -> None:
    model = model_of("qwen2_vl")
    first = prompt("qwen2_vl", frames=12, seed=1)
    each = segmo.watch(model, None, first).summary()["bytes"] // 12
    memory = segmo.watch(model, None, first, limit=room * each, longest=5)
    sizes = []
    for seed in range(2, 12):
        part = part_of("qwen2_vl", prompt("qwen2_vl", frames=12, seed=seed), 0, 12)
        if seed % 2:  # nothing new for two segments
            part["pixel_values_videos"] = part["pixel_values_videos"][:16].repeat(12, 1)
        memory.extend(part)
        sizes.append(sum(block.bytes for block in memory.watcher.closed))
    frames = torch.cat([block.frame[block.cell >= 0] for block in memory.watcher.held()])
    scenes = torch.bucketize(frames, torch.tensor(memory.watcher.starts[1:]), right=True)
    assert len(torch.unique(scenes)) == len(memory.watcher.starts)
    if room > 1:
        assert max(sizes) <= room * each
    else:  # a token of each scene that is over, and nothing else
        assert sum(block.video for block in memory.watcher.closed) == len(memory.watcher.starts) - 1
    assert memory.ask(torch.tensor([11, 12]), max_new_tokens=2).shape == (2,)


class KeysSeen(TorchFunctionMode):
    """Notes how many keys the last attention saw."""

    last = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            self.last = args[1].shape[2]
        return func(*args, **(kwargs or {}))


def test_thinning_old_segments_makes_no_context_of_what_is_left() -> None:
    model, tails, heads = model_of("qwen2_vl"), 2, 1
    each = segmo.watch(model, None, prompt("qwen2_vl", frames=12)).summary()["bytes"] // 12
    first, keys = part_of("qwen2_vl", prompt("qwen2_vl", frames=12), 0, 6), KeysSeen()
    memory = segmo.watch(model, None, first, limit=20 * each, longest=4, tails=tails, context=heads)
    for seed in range(20):
        part = part_of("qwen2_vl", prompt("qwen2_vl", frames=12, seed=seed), 3, 6 + seed % 4)
        with keys:
            memory.extend(part)
        watcher = memory.watcher
        closed = torch.cat([block.frame for block in watcher.closed]).tolist()
        tail = {border - back for border in watcher.borders[1:] for back in range(1, tails + 1)}
        best = sorted(watcher.starts[:-1], key=lambda start: (-watcher.freshness[start], start))
        context = [frame for frame in closed if frame in {*tail, *best[:heads]}]
        assert keys.last == len(watcher.sinks) + len(context) + sum(map(len, watcher.open))
    assert memory.summary()["held_tokens"] < memory.summary()["tokens"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frames": 0.5}, "'frames' has no meaning"),
        ({"disable": "select-tokens"}, "'disable' has no meaning"),
        ({"scorer": "attention", "layer": "all"}, "'layer' is 'all'"),
        ({"bits": 4}, "bits is 4"),
        ({"bits": 8, "segments": 1}, "which never is"),
        ({"place": {"host": 1, "device": None}}, "come in the order"),
        ({"place": {"device": None, "host": None}}, "only the last place"),
        ({"place": {"device": 0}}, "budget of device is 0"),
        ({"watch_keep": 0}, "watch_keep is 0"),
        ({"place": "moon"}, "device, host, disk"),
        ({"place": "disk"}, "folder"),
        ({"limit": 0}, "limit is 0"),
        ({"kep": 0.5}, "did you mean 'keep'"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        segmo.watch(model_of("qwen2_vl"), None, prompt("qwen2_vl"), **options)


def test_a_whole_segment_has_one_tail_and_a_cut_one_two() -> None:
    assert (parse({})[0].tails, parse({"tails": 3})[0].tails, Options().tails) == (1, 3, 2)


def test_what_cannot_be_watched_is_refused() -> None:
    model = model_of("qwen2_vl")
    with pytest.raises(PromptError, match="one video"):
        segmo.watch(model, None, prompt("qwen2_vl", frames=(3, 3)))
    with pytest.raises(PromptError, match="no image"):
        segmo.watch(model, None, prompt("qwen2_vl", images=1))
    with pytest.raises(OptionError, match="family 'Linear'"):
        segmo.watch(torch.nn.Linear(2, 2), None, prompt("qwen2_vl"))
    memory = segmo.watch(model, None, prompt("qwen2_vl"), segments=3)
    with pytest.raises(OptionError, match="segments=3 cuts a whole video"):
        memory.extend(prompt("qwen2_vl"))
    with pytest.raises(OptionError, match="fps is 0"):
        segmo.watch(model, None, prompt("qwen2_vl"), fps=0)
    with pytest.raises(OptionError, match="keep"):
        memory.ask(torch.tensor([11]), keep=0)


def test_a_conversation_of_ids_comes_back(tmp_path: Path) -> None:
    model, inputs = model_of("qwen2_vl"), prompt("qwen2_vl", frames=9)
    memory = segmo.watch(model, None, inputs, keep=0.4, fps=np.float32(2))
    memory.ask(question_of(inputs), max_new_tokens=2)
    memory.save(tmp_path)
    again = segmo.Memory.load(model, tmp_path)
    memory.talk.moved()  # a folder holds what was said, and not the keys of it
    answers = [each.ask([81, 82], max_new_tokens=4) for each in (memory, again)]
    assert torch.equal(*answers)
    again.forget()
    assert not torch.equal(again.ask([81, 82], max_new_tokens=4), answers[0])
