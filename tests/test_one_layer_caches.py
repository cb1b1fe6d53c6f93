"""What decoder layers that are stamped out take from a KV cache and give to it: what layers that are read do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from read_layers import Captured, assert_same, captured, compiled, counts, model_of, one_by_one
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache
from video_families import prompt

from segmo.compat import regions

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

if regions.regions is None:
    pytest.skip("this torch reads every layer", allow_module_level=True)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Captured]:
    return captured(monkeypatch)


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
def test_caches(kind: Any, regions: int, found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = compiled(model_of(), keep=1, segments=2)
        with torch.no_grad():
            return model(**prompt("qwen2_vl"), past_key_values=kind(model.config)).logits

    answer = run()
    assert counts(found) == [(regions, min(regions, 1))]
    one_by_one(monkeypatch)
    assert_same(run(), answer)


@pytest.mark.parametrize("own", [OwnUpdate, OwnStart, OwnKeys])
def test_a_cache_with_code_of_its_own_is_read_as_it_is(
    own: Any, found: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = compiled(model_of(), keep=1, segments=2)
        cache = DynamicCache(config=model.config)
        cache.layers[2] = own()
        with torch.no_grad():
            return model(**prompt("qwen2_vl"), past_key_values=cache).logits

    answer = run()
    assert counts(found) == [(2, 1)], own  # those in front of it
    one_by_one(monkeypatch)
    assert_same(run(), answer)


def test_a_cache_of_fixed_length_leaves_later_calls_as_they_are(found: list[Any]) -> None:
    model = compiled(model_of(), keep=1, segments=2)
    with torch.no_grad():
        for cache in (StaticCache(config=model.config, max_cache_len=64), DynamicCache(config=model.config)):
            model(**prompt("qwen2_vl"), past_key_values=cache)
    assert counts(found) == [(0, 0), (4, 1)]
