"""What decoder layers that are stamped out take from a KV cache and give to it: what layers that are read do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from read_layers import assert_same, compiled, counts, model_of, one_by_one
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer, StaticCache
from video_families import prompt

from segmo.compat import regions
from segmo.runtime import handed_cache

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

if regions.regions is None:
    pytest.skip("this torch reads every layer", allow_module_level=True)


def of_class(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    update = DynamicCache.update
    monkeypatch.setattr(
        DynamicCache, "update", lambda self, keys, values, *rest, **more: update(self, keys * 2, values, *rest, **more)
    )


def of_cache(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    update = cache.update
    cache.update = lambda keys, values, *rest, **more: update(keys * 2, values, *rest, **more)


def of_its_layer(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    update = cache.layers[2].update
    cache.layers[2].update = lambda keys, values, *rest, **more: update(keys * 2, values, *rest, **more)


@pytest.mark.parametrize("change", [of_class, of_cache, of_its_layer])
@pytest.mark.parametrize("when", ["before", "afterwards"])
def test_another_way_to_take_keys_in(change: Callable[..., None], when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(model: Any, change: Callable[..., None] | None) -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        with monkeypatch.context() as patch, torch.no_grad():
            if change is not None:
                change(cache, patch)
            return model(**prompt("qwen2_vl"), past_key_values=cache).logits

    model = compiled(model_of(), keep=1, segments=2)
    before = run(model, None) if when == "afterwards" else None
    after = run(model, change)
    assert before is None or not torch.equal(before, after)
    one_by_one(monkeypatch)
    assert_same(run(compiled(model_of(), keep=1, segments=2), change), after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_turn_goes_on_from_a_cache_that_was_cut(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def turns() -> torch.Tensor:
        torch._dynamo.reset()
        model = compiled(model_of("exaone4_5").to(dtype))
        cache = DynamicCache(config=model.config)
        inputs = prompt("exaone4_5")
        with torch.no_grad():
            model(**inputs, past_key_values=cache, use_cache=True)
            seen = cache.get_seq_length()
            more = torch.full((1, 5), 9)
            mask = torch.ones(1, seen + 5, dtype=torch.long)
            return model(input_ids=more, attention_mask=mask, past_key_values=cache).logits

    answer = turns()
    one_by_one(monkeypatch)
    assert_same(turns(), answer)


class OwnUpdate(DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """Takes keys in by code that is not transformers'."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states * 2, value_states, *args, **kwargs)


class OwnStart(DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """Starts with a key that transformers' does not have."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[:, :, :0] * 2, value_states[:, :, :0] * 2
        self.started = True


class OwnKeys(DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """Holds its keys in another place."""

    @property
    def keys(self) -> Any:
        return self.held

    @keys.setter
    def keys(self, value: Any) -> None:
        self.held = value


@pytest.mark.parametrize(
    ("kind", "regions"),
    [
        (lambda config: None, 4),
        (lambda config: DynamicCache(), 4),
        (lambda config: DynamicCache(config=config), 4),
        (lambda config: StaticCache(config=config, max_cache_len=64), 0),
    ],
    ids=["none", "bare", "dynamic", "static"],
)
def test_caches(kind: Any, regions: int, captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = compiled(model_of(), keep=1, segments=2)
        with torch.no_grad():
            return model(**prompt("qwen2_vl"), past_key_values=kind(model.config)).logits

    answer = run()
    assert counts(captured_layers) == [(regions, min(regions, 1))]
    one_by_one(monkeypatch)
    assert_same(run(), answer)


@pytest.mark.parametrize("own", [OwnUpdate, OwnStart, OwnKeys])
def test_a_cache_with_code_of_its_own_is_read_as_it_is(
    own: Any, captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = compiled(model_of(), keep=1, segments=2)
        cache = DynamicCache(config=model.config)
        cache.layers[2] = own()
        with torch.no_grad():
            return model(**prompt("qwen2_vl"), past_key_values=cache).logits

    answer = run()
    assert counts(captured_layers) == [(2, 1)], own  # those in front of it
    one_by_one(monkeypatch)
    assert_same(run(), answer)


def test_a_cache_of_fixed_length_leaves_later_calls_as_they_are(captured_layers: list[Any]) -> None:
    model = compiled(model_of(), keep=1, segments=2)
    with torch.no_grad():
        for cache in (StaticCache(config=model.config, max_cache_len=64), DynamicCache(config=model.config)):
            model(**prompt("qwen2_vl"), past_key_values=cache)
    assert counts(captured_layers) == [(0, 0), (4, 1)]


# Linear layers, which keep states of one size and change these in place.


def linear_turns(change: Callable[[Any], None]) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Logits of a prefill, two tokens by themselves and three together; and all that the cache's first layer holds."""
    torch._dynamo.reset()
    model = compiled(model_of("qwen3_5"))
    cache = DynamicCache(config=model.config)
    change(cache)
    later = [{"input_ids": torch.tensor([more])} for more in ([9], [7], [9, 11, 13])]
    with torch.no_grad():
        answers = [model(**call, past_key_values=cache).logits for call in (prompt("qwen3_5"), *later)]
    held = vars(cache.layers[0])
    assert held["conv_states"][0].nan_to_num().abs().max() > 0
    answers += [held.pop(name)[0] for name in ("conv_states", "recurrent_states")]
    held.pop("update_conv_state", None)
    return answers, held


def as_it_is(cache: Any) -> None:
    del cache


def emptied(cache: Any) -> None:
    """As after another conversation."""
    model = model_of("qwen3_5")
    with torch.no_grad():
        model(**prompt("qwen3_5"), past_key_values=cache, use_cache=True)
    cache.reset()


def recording(cache: Any) -> None:
    """As speculative decoding has it."""
    cache.activate_past_recording()


def doubling(cache: Any) -> None:
    """Its first layer answers by code of others."""
    update = cache.layers[0].update_conv_state
    cache.layers[0].update_conv_state = lambda states, *rest, **more: update(states * 2, *rest, **more)


@pytest.mark.parametrize(("change", "stamped"), [(as_it_is, 2), (emptied, 1), (recording, 1), (doubling, 1)])
def test_states_of_linear_layers(
    change: Callable[[Any], None], stamped: int, captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, noted = linear_turns(change)
    assert captured_layers[0][0].count - captured_layers[0][0].read == stamped
    one_by_one(monkeypatch)
    plain, held = linear_turns(change)
    for answer, expected in zip(answers, plain, strict=True):
        assert_same(answer, expected)
    assert noted == held


def test_what_is_known_of_linear_layers_is_what_transformers_has() -> None:
    assert handed_cache._LINEAR is LinearAttentionLayer


def test_states_are_changed_where_they_are() -> None:
    """Others may hold them: a graph on a GPU has their addresses in it."""
    model = compiled(model_of("qwen3_5"))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**prompt("qwen3_5"), past_key_values=cache, use_cache=True)
        held = cache.layers[0].conv_states[0], cache.layers[0].recurrent_states[0]
        before = [each.clone() for each in held]
        model(input_ids=torch.tensor([[9]]), past_key_values=cache)
    assert cache.layers[0].conv_states[0] is held[0]
    assert cache.layers[0].recurrent_states[0] is held[1]
    assert not any(torch.equal(*pair) for pair in zip(held, before, strict=True))
