"""How a memory keeps and chooses: relevance by attention, eight bits, budgets of places, streams, compiled models."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_reference import reference_logits
from models import VIDEO, build, prompt
from test_watch import error, generate, mask_of, model_of, question_of
from torch import Tensor
from transformers import TextIteratorStreamer

import segmo
from segmo.compat.cache_name import cache_of
from segmo.compat.dynamo import compile_seconds
from segmo.demo.processor import build_tokenizer
from segmo.errors import CacheError, OptionError
from segmo.memory import moves
from segmo.memory.attend import attention_paid_to, rows_of_words
from segmo.memory.conversation import Turn
from segmo.memory.look import look, survey
from segmo.memory.packed import STEPS, Packed, channels, pack, token_bytes
from segmo.memory.seen import Seen
from segmo.memory.stale import versions

FAMILY = "qwen2_5_vl"


def turn_of(question: Tensor) -> Turn:
    """A first question."""
    return Turn(question, question.tolist(), [], None, question.tolist())


def seen_by(memory: segmo.Memory, question: Tensor) -> Seen:
    """What a question sees under a memory's own options."""
    return look(memory.model, survey(memory.watcher), turn_of(question), memory.options.question())


# relevance from the keys


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava_onevision"])
def test_attention_to_the_keys_is_the_models_own(family: str) -> None:
    model, inputs = build(family), prompt(family, frames=6)
    question = question_of(inputs)
    memory = segmo.watch(model, None, inputs, segments=1, keep=1.0, layer=1)
    known = survey(memory.watcher)
    whole = Seen(known.held, known.known, torch.arange(len(known.scene))[None], {})
    found = attention_paid_to(model, whole, turn_of(question), known.behind, None, known.ranks)
    one = attention_paid_to(model, whole, turn_of(question), known.behind, 1, known.ranks)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(**inputs, output_attentions=True).attentions
    for paid_T, weights in zip(found, wanted, strict=True):
        assert error(paid_T, weights[0, :, -len(question) :].mean((0, 1))[: len(paid_T)]) < 1e-4
    assert torch.allclose(one[0], found[1])
    with pytest.raises(OptionError, match="attn_implementation"):
        memory.ask(question, scorer="attention", max_new_tokens=1)


def test_a_question_asks_by_its_words_and_its_last_row() -> None:
    assert rows_of_words([5, 6], [1, 5, 6, 2, 3]).tolist() == [1, 2, 4]
    assert rows_of_words([5, 7], [1, 5, 6, 2, 3]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("layer", [1, "each"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_layers_that_choose_for_themselves_equal_dense_masks(family: str, layer: Any) -> None:
    model, inputs = model_of(family), prompt(family, frames=12)
    question = question_of(inputs)
    memory = segmo.watch(model, None, inputs, keep=0.3, scorer="attention", layer=layer, balance=1.0)
    seen = seen_by(memory, question)
    assert len(seen.at) == (3 if layer == "each" else 1)
    _, logits = generate(model, memory.inputs(question), 1)
    masks = [mask_of(family, memory, inputs, at_K) for at_K in seen.at.expand(3, -1)]
    assert error(logits, reference_logits(model, inputs, *masks)) < 1e-5
    cache = memory.cache(question)
    assert [len(each.positions[0]) for each in cache.layers] == [len(seen)] * 3
    assert torch.equal(cache.layers[2].positions[0], seen.at[-1])
    with pytest.raises(OptionError, match="layers 0 to 2"):
        segmo.watch(model, None, inputs, scorer="attention", layer=7).ask(question)


# eight bits


def test_eight_bits_are_off_by_half_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, 50, 16, generator=generator) * torch.logspace(-2, 2, 16)
    states[:, :, 7] *= 30  # a token that is larger than the channels were measured
    packed = pack(states, channels(states[:, :, :5]))
    step = packed.scale.float() * packed.channel
    assert bool(((packed.dense() - states).abs() <= 0.57 * step).all())
    assert packed.number.abs().max() == STEPS
    assert 50 * token_bytes(packed) == 2 * 3 * 50 * (16 + 2)
    assert torch.equal(packed.only(torch.tensor([3, 7])).dense(), packed.dense()[:, :, [3, 7]])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava_onevision"])
def test_a_memory_in_eight_bits_is_small_and_near(family: str, tmp_path: Path) -> None:
    model, inputs = model_of(family), prompt(family, frames=12)
    question = question_of(inputs)
    whole, small = (segmo.watch(model, None, inputs, keep=0.6, bits=bits) for bits in (None, 8))
    closed = small.watcher.closed
    assert len(closed) > 1
    assert all(isinstance(block.keys, Packed) for block in closed)
    sizes = [sum(b.bytes - b.features.nbytes for b in m.watcher.closed) for m in (small, whole)]
    head = closed[0].keys.number.shape[3]  # type: ignore[union-attr]  # they are packed
    assert sizes[0] / sizes[1] == pytest.approx((head + 2) / (4 * head))
    assert small.summary()["bits"] == 8
    assert small.summary()["bytes"] < whole.summary()["bytes"]
    logits = [generate(model, m.inputs(question), 1)[1] for m in (small, whole)]
    assert 0 < error(*logits) < 0.05
    small.save(tmp_path)
    back = segmo.Memory.load(model, tmp_path)
    assert back.summary() == small.summary()
    assert torch.equal(generate(model, back.inputs(question), 1)[1], logits[0])
    again = segmo.watch(model, None, inputs, keep=0.6, bits=8, limit=int(0.7 * small.summary()["bytes"]))
    assert all(isinstance(block.keys, Packed) for block in again.watcher.closed)


# weights in eight bits


class EightBits(torch.nn.Module):
    """A linear layer as checkpoints in fp8 store it."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype))


def stored_in_eight_bits(how: str) -> tuple[Any, Tensor]:
    """A model one of whose layers has weights in eight bits; and their numbers."""
    model = build(FAMILY)
    mlp = model.base_model.language_model.layers[1].mlp
    if how == "plain":
        mlp.down_proj = EightBits(mlp.down_proj)
        return model, mlp.down_proj.weight
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(mlp, getattr(quantization, how)())
    return model, mlp.down_proj.weight.qdata


@pytest.mark.parametrize("how", ["plain", "Float8WeightOnlyConfig", "Int8WeightOnlyConfig"])
def test_another_weight_in_eight_bits_makes_a_memory_stale(how: str, tmp_path: Path) -> None:
    (model, numbers), (other, others) = (stored_in_eight_bits(how) for _ in range(2))
    memory = segmo.watch(model, None, prompt(FAMILY))
    memory.save(tmp_path)
    assert segmo.Memory.load(other, tmp_path).summary() == memory.summary()
    for changed in (others, numbers):
        with torch.no_grad():
            changed.view(torch.uint8)[-1, -1] ^= 1  # the least difference there is
    with pytest.raises(CacheError, match="other weights"):
        segmo.Memory.load(other, tmp_path)
    with pytest.raises(CacheError, match="weights have changed"):
        memory.ask(torch.tensor([11]))


def test_weights_that_are_not_here_cannot_be_compared(tmp_path: Path) -> None:
    model = build(FAMILY)
    memory = segmo.watch(model, None, prompt(FAMILY))
    model.base_model.language_model.layers[1].mlp.to("meta")
    memory._weights = versions(model)
    with pytest.raises(CacheError, match=r"layers\.1\.mlp.*'meta'"):
        memory.save(tmp_path)


# places


def test_budgets_send_older_segments_further_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of(FAMILY), prompt(FAMILY, frames=24)
    question = question_of(inputs)
    beside = segmo.watch(model, None, inputs, keep=0.5)
    each = max(block.bytes for block in beside.watcher.closed)
    places = {"device": 2 * each, "host": 3 * each, "disk": None}
    memory = segmo.watch(model, None, inputs, keep=0.5, place=places, folder=tmp_path)
    held = [block.place for block in memory.watcher.closed]
    assert held == sorted(held, key=("disk", "host", "device").index)
    assert set(held) == set(places)
    assert sum(b.bytes for b in memory.watcher.closed if b.place == "device") <= 2 * each
    assert memory.bytes_in["host"] <= 3 * each
    assert sum(memory.bytes_in.values()) == memory.summary()["bytes"] == beside.summary()["bytes"]
    copies: list[int] = []
    original = moves.in_one_copy
    monkeypatch.setattr(moves, "in_one_copy", lambda *given: copies.append(1) or original(*given))
    assert torch.equal(memory.ask(question, max_new_tokens=3), beside.ask(question, max_new_tokens=3))
    assert len(copies) == 3 * 2  # one for each layer of each memory
    names = {path.name for path in tmp_path.iterdir()}
    loaded = segmo.Memory.load(model, tmp_path, place=places)
    loaded.forget()
    memory.forget()
    assert torch.equal(loaded.ask(question, max_new_tokens=3), memory.ask(question, max_new_tokens=3))
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_full_last_place_thins_what_is_old() -> None:
    model, inputs = model_of(FAMILY), prompt(FAMILY, frames=24)
    each = max(b.bytes for b in segmo.watch(model, None, inputs).watcher.closed)
    memory = segmo.watch(model, None, inputs, place={"device": 2 * each, "host": 2 * each})
    assert memory.bytes_in["host"] <= 2 * each
    assert memory.summary()["held_video_tokens"] < memory.summary()["video_tokens"]
    frames = torch.cat([block.frame[block.cell >= 0] for block in memory.watcher.held()])
    scenes = torch.bucketize(frames, torch.tensor(memory.watcher.starts[1:]), right=True)
    assert len(torch.unique(scenes)) == len(memory.watcher.starts)


def test_one_copy_brings_tensors_of_any_kind() -> None:
    tensors = [torch.randn(3, 5), torch.arange(7).to(torch.int8), torch.randn(2, 0, 4).half(), torch.randn(3).half()]
    found = moves.in_one_copy(tensors, torch.device("cpu"))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, tensors, strict=True))


def test_a_copied_cache_is_what_was_seen_and_not_the_memory() -> None:
    model, inputs = model_of(FAMILY), prompt(FAMILY, frames=12)
    question = question_of(inputs)
    memory = segmo.watch(model, None, inputs, keep=0.3)
    wanted = memory.ask(question, max_new_tokens=3)
    memory.forget()
    twin = copy.deepcopy(memory.cache(question))
    assert "Moves" not in repr(vars(twin.layers[0]))
    ids = torch.cat([inputs["input_ids"]], 1)
    found = model.generate(ids, past_key_values=twin, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert torch.equal(found, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [None, 8])
def test_keys_on_the_host_are_pinned_and_seen_as_beside_the_model(bits: int | None) -> None:
    model, inputs = build(FAMILY).to("cuda"), prompt(FAMILY, frames=24)
    question = question_of(inputs)
    beside, host = (segmo.watch(model, None, inputs, keep=0.4, place=place, bits=bits) for place in ("device", "host"))
    assert host.bytes_in["host"] > 0
    for block in host.watcher.closed:
        stored = [block.features]
        for states in (block.keys, block.values):
            stored += [states.number, states.scale] if isinstance(states, Packed) else [states]
        assert all(part.device.type == "cpu" and part.is_pinned() for part in stored)
    for _ in range(2):  # a second turn behind the first
        assert torch.equal(host.ask(question, max_new_tokens=4), beside.ask(question, max_new_tokens=4))
    logits = [generate(model, memory.inputs(question), 1)[1] for memory in (host, beside)]
    assert torch.equal(*logits)


@pytest.mark.gpu
def test_the_next_layers_keys_come_while_a_layer_computes() -> None:
    model, inputs = build(FAMILY).to("cuda"), prompt(FAMILY, frames=24)
    memory = segmo.watch(model, None, inputs, keep=0.4, place="host")
    moving = memory.moves([seen_by(memory, question_of(inputs))], None)
    assert moving.stream is not None
    moving.take(0)
    torch.cuda._sleep(2_000_000_000)  # what the layer computes, about a second
    computed = torch.cuda.Event()
    computed.record()
    moving.stream.synchronize()
    assert not computed.query()  # the next layer's keys are there, and this one is not done
    keys, values = moving.take(1)
    torch.cuda.synchronize()
    wanted = memory.moves(moving.seen, None).take(1)
    assert torch.equal(keys, wanted[0])
    assert torch.equal(values, wanted[1])


# generation


def test_an_answer_is_streamed_and_sampled() -> None:
    model, inputs = model_of(FAMILY), prompt(FAMILY, frames=6)
    question = question_of(inputs)
    memory = segmo.watch(model, None, inputs, segments=1, keep=1.0)
    tokenizer: Any = build_tokenizer()
    streamer: Any = TextIteratorStreamer(tokenizer, skip_prompt=True)
    answers: list[Tensor] = []
    thread = threading.Thread(target=lambda: answers.append(memory.ask(question, max_new_tokens=6, streamer=streamer)))
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed == tokenizer.decode(answers[0])
    memory.forget()
    torch.manual_seed(3)
    found = memory.ask(question, max_new_tokens=6, do_sample=True, temperature=1.5)
    torch.manual_seed(3)
    wanted = model.generate(**inputs, max_new_tokens=6, do_sample=True, temperature=1.5)
    assert torch.equal(found, wanted[0, inputs["input_ids"].shape[1] :])


def test_questions_of_one_batch_share_the_memory() -> None:
    model, inputs = model_of(FAMILY), prompt(FAMILY, frames=12)
    memory = segmo.watch(model, None, inputs, keep=0.2)
    questions = [torch.tensor([11 + at, 12, 13]) for at in range(4)]
    cache = cache_of(memory.inputs(questions))
    held = memory.summary()["held_tokens"]
    seen = len(seen_by(memory, questions[0]))
    assert cache.layers[0].keys.shape[:3] == (4, 2, seen)
    assert seen < held / 2


def test_a_model_that_is_compiled_answers_without_graphs_of_its_own(fresh_dynamo: None) -> None:
    model, inputs = build(FAMILY), prompt(FAMILY, frames=9)
    question = question_of(inputs)
    wanted = segmo.watch(model, None, inputs, keep=0.3).ask(question, max_new_tokens=3)
    segmo.compile(model, keep=0.3)
    memory = segmo.watch(model, None, inputs, keep=0.3)
    before = compile_seconds()
    assert torch.equal(memory.ask(question, max_new_tokens=3), wanted)
    assert compile_seconds() == before
    ids = inputs["input_ids"]
    found = model.generate(ids, past_key_values=memory.cache(question), max_new_tokens=3, do_sample=False)
    assert torch.equal(found[0, ids.shape[1] :], wanted)
    assert int((ids == VIDEO).sum()) > 0
