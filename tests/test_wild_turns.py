"""Later turns on a cache that was cut: the unmodified model's answer, eager, with the dropped keys hidden by a mask."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import video_families
from models import FAMILIES, build, left_padded, prompt
from transformers import DynamicCache, GenerationMixin
from turns import TEXT, ask, assert_same, dropped_hidden, next_turn, words

import segmo
from segmo.errors import CacheError, PromptError
from segmo.report.prefill import Prefill
from segmo.runtime.cache import CutLayer, CutSlidingLayer

OPTIONS: dict[str, dict[str, Any]] = {
    "segments": {"segments": 2},
    "attention": {"scorer": "attention", "layer": 1, "segments": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _graphs_of_this_module() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    compiled.cache_clear()
    torch._dynamo.reset()


@functools.cache
def compiled(family: str, options: str = "segments") -> Any:
    return segmo.compile(build(family), keep=0.5, strict=True, **OPTIONS[options])


def kept() -> Prefill:
    prefill = segmo.last_report().prefill
    assert prefill is not None
    return prefill


def layer_of(cache: Any) -> CutLayer:
    assert all(isinstance(layer, CutLayer) for layer in cache.layers)
    return cache.layers[0]  # type: ignore[no-any-return]


def talk(model: Any, inputs: Any, questions: tuple[int, ...], **more: Any) -> list[Any]:
    """Answers of a conversation: a prompt with video, then questions of so many tokens on the same cache."""
    answers = [ask(model, inputs, **more)]
    for number, count in enumerate(questions):
        inputs = next_turn(inputs, answers[-1].sequences, words(count, len(inputs["input_ids"]), number))
        answers.append(ask(model, inputs, past_key_values=answers[-1].past_key_values, **more))
    return answers


@pytest.mark.parametrize(
    ("family", "options"), [*((family, "segments") for family in FAMILIES), ("qwen3_vl", "attention")]
)
def test_three_turns_equal_eager_with_the_dropped_keys_hidden(family: str, options: str) -> None:
    model, inputs, first_layer = compiled(family, options), prompt(family), OPTIONS[options].get("layer", 0)
    mine = talk(model, inputs, (5, 3))
    plain, prefill = build(family), kept()
    with dropped_hidden(plain, prefill, first_layer):
        theirs = talk(plain, inputs, (5, 3))
    for found, expected in zip(mine, theirs, strict=True):
        assert_same(found, expected)
    cache, whole = mine[-1].past_key_values, theirs[-1].past_key_values
    assert cache.get_seq_length() == whole.get_seq_length()
    dropped = inputs["input_ids"].shape[1] - prefill.index.shape[1]  # type: ignore[union-attr]
    assert dropped > 0
    for layer, full in zip(cache.layers, whole.layers, strict=True):
        assert (layer.seen, layer.held) == (whole.get_seq_length(), whole.get_seq_length() - dropped)
        assert layer.keys.shape[-2] == layer.held == layer.positions.shape[1]
        rows = layer.positions[0]
        torch.testing.assert_close(layer.keys, full.keys[:, :, rows], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(layer.values, full.values[:, :, rows], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dynamic", [None, False])
def test_turns_of_a_model_that_is_compiled_for_its_sizes(dynamic: bool | None) -> None:
    """One graph for the first call's sizes and one for all others; and one for each length."""
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    segmo.compile(model, keep=0.5, strict=True, dynamic=dynamic, **OPTIONS["segments"])
    mine = talk(model, inputs, (5, 3), max_new_tokens=2)
    plain, prefill = build("llava_onevision"), kept()
    with dropped_hidden(plain, prefill):
        theirs = talk(plain, inputs, (5, 3), max_new_tokens=2)
    for found, expected in zip(mine, theirs, strict=True):
        assert_same(found, expected)
    cache = mine[-1].past_key_values
    assert layer_of(cache).held < layer_of(cache).seen == theirs[-1].past_key_values.get_seq_length()


def both(run: Any, family: str = "llava_onevision") -> tuple[Any, Any]:
    """What ``run(model)`` gives with the compiled model, and with the eager one where the dropped keys are hidden."""
    mine = run(compiled(family))
    plain, prefill = build(family), kept()
    with dropped_hidden(plain, prefill):
        return mine, run(plain)


def assert_all_same(run: Any, family: str = "llava_onevision") -> None:
    for found, expected in zip(*both(run, family), strict=True):
        assert_same(found, expected)


@pytest.mark.families("qwen2_5_vl", "llava_onevision")
def test_padded_rows_and_padded_questions(family: str) -> None:
    inputs = left_padded(prompt(family, batch=2, seed=1))

    def run(model: Any) -> list[Any]:
        first = ask(model, inputs)
        second_inputs = next_turn(inputs, first.sequences, words(5, 2), pads=2)
        second = ask(model, second_inputs, past_key_values=first.past_key_values)
        third_inputs = next_turn(second_inputs, second.sequences, words(3, 2, 1), pads=1)
        return [first, second, ask(model, third_inputs, past_key_values=second.past_key_values)]

    assert_all_same(run, family)


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_several_questions_behind_one_prefix(family: str) -> None:
    """The prefix is a direct call without a question; copies of its cache go on, and it stays as it was.

    Emptied, it takes another prompt.
    """
    prefix = prompt(family, question=0)
    length = prefix["input_ids"].shape[1]

    def run(model: Any) -> list[Any]:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            assert model(**prefix, past_key_values=cache, logits_to_keep=1).past_key_values is cache
        answers = []
        for number in range(2):
            turn = next_turn(prefix, prefix["input_ids"], words(4 + number, seed=number))
            answers.append(ask(model, turn, past_key_values=copy.deepcopy(cache)))
        assert cache.get_seq_length() == length
        caches.append(cache)
        return answers

    caches: list[Any] = []
    assert_all_same(run, family)
    cache, other = caches[0], prompt(family)
    cache.reset()
    assert cache.get_seq_length() == 0
    model = compiled(family)
    found = ask(model, other, past_key_values=cache)
    assert found.past_key_values is cache
    assert_same(found, ask(model, other))


def test_a_cache_made_without_a_config_and_an_answer_that_goes_on() -> None:
    inputs = prompt("llava_onevision")

    def run(model: Any) -> list[Any]:
        mine = DynamicCache()
        first = ask(model, inputs, past_key_values=mine)
        assert first.past_key_values is mine
        on = next_turn(inputs, first.sequences, words(0))
        return [first, ask(model, on, past_key_values=mine)]

    assert_all_same(run)


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_crop_goes_back_as_far_as_nothing_was_dropped(family: str) -> None:
    inputs = prompt(family, question=5)

    def run(model: Any) -> list[Any]:
        first = ask(model, inputs)
        first.past_key_values.crop(-2)
        on = next_turn(inputs, first.sequences[:, :-2], words(3))
        return [first, ask(model, on, past_key_values=first.past_key_values)]

    assert_all_same(run, family)
    cache = ask(compiled(family), inputs).past_key_values
    before = cache.get_seq_length()
    tail = before - int((kept().cell[0] >= 0).nonzero().max()) - 1  # behind the video
    cache.crop(-tail)
    assert (layer_of(cache).seen, layer_of(cache).held) == (before - tail, layer_of(cache).positions.shape[1])
    with pytest.raises(CacheError, match=r"crop would take 30 tokens off.*keep=1"):
        cache.crop(-30)
    assert cache.get_seq_length() == before - tail


def test_candidates_are_no_part_of_the_question() -> None:
    """Assisted decoding tries candidates in the very call that cuts the prompt; the answer is plain decoding's."""
    family = "qwen3_vl"
    model, inputs = compiled(family), prompt(family)
    inputs["input_ids"][:, -3:] = inputs["input_ids"][:, :3]  # the prompt repeats itself: candidates from the start
    expected, index = ask(model, inputs, max_new_tokens=10), kept().index
    for way in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": build(family)}):
        found = ask(model, inputs, max_new_tokens=10, **way)
        assert_same(found, expected)
        assert torch.equal(kept().index, index)  # type: ignore[arg-type]
        cache, whole = found.past_key_values, expected.past_key_values
        assert (cache.get_seq_length(), layer_of(cache).held) == (whole.get_seq_length(), layer_of(whole).held)


@pytest.mark.skipif(
    "chunk_mm_encoder_outputs" not in inspect.unwrap(GenerationMixin._prefill).__code__.co_varnames,
    reason="this transformers leaves the video out of a prefill in chunks, with SegMo and without",
)
def test_a_prompt_in_chunks_is_refused_and_one_chunk_is_not() -> None:
    model, inputs = compiled("llava_onevision"), prompt("llava_onevision")
    with pytest.raises(PromptError, match=r"prefill_chunk_size cuts the prompt into 5 parts.*unset"):
        ask(model, inputs, prefill_chunk_size=16)
    assert_same(ask(model, inputs, prefill_chunk_size=500), ask(model, inputs))


@pytest.mark.families("qwen2_5_vl", "llava_onevision")
def test_beams_take_the_cut_with_them(family: str) -> None:
    inputs = prompt(family)
    (mine,), (theirs,) = both(lambda model: [ask(model, inputs, num_beams=2, num_return_sequences=2)], family)
    assert_same(mine, theirs)
    assert layer_of(mine.past_key_values).positions.shape[0] == 2


@pytest.mark.families("qwen2_5_vl", "llava_onevision")
def test_direct_calls_go_on_at_the_right_positions(family: str) -> None:
    """Without position ids, with them, with a 2-D mask that hides a token of the prompt, and with a 4-D one."""
    inputs = prompt(family)
    length = inputs["input_ids"].shape[1]
    flat = torch.ones(1, length + 11, dtype=torch.long)
    flat[:, 2] = 0
    full = (torch.ones(2, length + 13, dtype=torch.bool).tril(length + 11) & (torch.arange(length + 13) != 3))[
        None, None
    ]

    def run(model: Any) -> list[torch.Tensor]:
        def positions(start: int, count: int) -> torch.Tensor:
            row = torch.arange(start, start + count)[None]
            return row if family == "llava_onevision" else row[None].expand(3, 1, count)

        with torch.no_grad():
            out = model(**inputs, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, [out.logits[:, -1]]
            calls: tuple[dict[str, torch.Tensor], ...] = (
                {"input_ids": words(5)},
                {"input_ids": words(1)},
                {"input_ids": words(5, seed=1), "position_ids": positions(90, 5), "attention_mask": flat},
                {"input_ids": words(2, seed=2), "position_ids": positions(95, 2), "attention_mask": full},
            )
            logits += [model(**given, past_key_values=cache).logits[0] for given in calls]
        assert cache.get_seq_length() == length + 13
        return logits

    for found, expected in zip(*both(run, family), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_later_turns_by_the_model_as_it_was_and_by_another_backend() -> None:
    inputs = prompt("llava_onevision")
    first = ask(compiled("llava_onevision"), inputs)
    turn = next_turn(inputs, first.sequences, words(5))
    plain, other, prefill = build("llava_onevision"), build("llava_onevision"), kept()
    other.compile(backend="aot_eager", dynamic=True)
    answers = [ask(model, turn, past_key_values=copy.deepcopy(first.past_key_values)) for model in (plain, other)]
    with dropped_hidden(plain, prefill):
        expected = talk(plain, inputs, (5,))[1]
    for answer in answers:
        assert_same(answer, expected)


def test_a_second_video_in_a_later_turn_runs_as_it_was_and_says_so() -> None:
    inputs, second = prompt("llava_onevision"), prompt("llava_onevision", frames=4, seed=3)

    def run(model: Any) -> list[Any]:
        first = ask(model, inputs, max_new_tokens=2)
        turn = next_turn(inputs, first.sequences, second["input_ids"])
        turn["pixel_values_videos"] = second["pixel_values_videos"]
        return [first, ask(model, turn, past_key_values=first.past_key_values)]

    model = segmo.compile(build("llava_onevision"), keep=0.5, segments=2)
    with pytest.warns(UserWarning, match="already holds tokens when the video arrives"):
        mine = run(model)
    plain, prefill = build("llava_onevision"), kept()
    with dropped_hidden(plain, prefill):
        theirs = run(plain)
    for found, expected in zip(mine, theirs, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("family", ["exaone4_5", "cohere_compass"])
def test_a_later_turn_behind_a_sliding_window(family: str) -> None:
    """1-D positions, and M-RoPE. The reference holds every key, and its masks make the window."""
    inputs = video_families.prompt(family)

    def run(model: Any, **more: Any) -> list[Any]:
        first = ask(model, inputs, **more)
        turn = next_turn(inputs, first.sequences, words(5))
        return [first, ask(model, turn, past_key_values=first.past_key_values)]

    mine = run(segmo.compile(video_families.build(family), keep=0.5, segments=1))
    sliding, full = mine[1].past_key_values.layers
    assert isinstance(sliding, CutSlidingLayer)
    assert sliding.seen == full.seen == mine[1].past_key_values.get_seq_length()
    assert sliding.held < full.held < full.seen
    plain, prefill = video_families.build(family), kept()
    with dropped_hidden(plain, prefill):
        theirs = run(plain, past_key_values=DynamicCache())
    for found, expected in zip(mine, theirs, strict=True):
        assert_same(found, expected)


def test_a_second_video_in_a_direct_call_finds_its_positions() -> None:
    """Without position ids and mask, as the model itself takes it behind a cache."""
    family = "qwen3_vl"
    inputs, second = prompt(family), prompt(family, frames=4, seed=3)
    del second["attention_mask"]

    def run(model: Any) -> torch.Tensor:
        with torch.no_grad():
            cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
            found: torch.Tensor = model(**second, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        assert cache.get_seq_length() == inputs["input_ids"].shape[1] + second["input_ids"].shape[1]
        return found

    model = segmo.compile(build(family), keep=0.5, segments=2)
    with pytest.warns(UserWarning, match="already holds tokens when the video arrives"):
        found = run(model)
    plain, prefill = build(family), kept()
    with dropped_hidden(plain, prefill):
        torch.testing.assert_close(found, run(plain), atol=2e-5, rtol=1e-4)


def test_turns_of_other_lengths_take_the_same_graphs() -> None:
    model = compiled("llava_onevision")
    talk(model, prompt("llava_onevision"), (5, 3))
    graphs = len(segmo.last_report().graphs)
    for frames, question in ((3, 4), (8, 7)):
        talk(model, prompt("llava_onevision", frames=frames, question=question), (4, 6), max_new_tokens=6)
    assert len(segmo.last_report().graphs) == graphs


def test_masks_that_a_model_makes_twice_are_cut_once() -> None:
    """Molmo2 hands a mask that transformers made for it on to its text model, which has one made of that again."""
    inputs = video_families.prompt("molmo2", 6, 1)
    pads = torch.zeros(1, 5, dtype=torch.long)
    padded = {**inputs, **{name: torch.cat([pads, inputs[name]], dim=1) for name in TEXT if name in inputs}}
    model = video_families.build("molmo2")
    segmo.compile(model, keep=0.5, segments=1, strict=True)
    alone = ask(model, inputs)
    for found, expected in zip(ask(model, padded).logits, alone.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Without padding there is no mask at a single token, so the padded prompt's steps have a graph of their own.
    assert [graph.kind for graph in segmo.last_report().graphs].count("decode") == 2
    # A further turn of several tokens, against the same tokens one after another.
    more = words(4)
    turn = ask(model, next_turn(inputs, alone.sequences, more), past_key_values=alone.past_key_values)
    again = ask(model, inputs)
    so_far, cache = again.sequences, again.past_key_values
    for number in range(1, 5):
        step = ask(model, next_turn(inputs, so_far, more[:, :number]), past_key_values=cache, max_new_tokens=1)
        cache = step.past_key_values
    torch.testing.assert_close(step.logits[0], turn.logits[0], rtol=1e-4, atol=1e-5)
