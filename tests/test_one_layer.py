"""Layers that Dynamo stamps out: the same graphs, weights, answers and conditions as those that it reads one by one."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from read_layers import (
    assert_same,
    compiled,
    counts,
    layers_of,
    logits,
    model_of,
    one_by_one,
)
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2MLP, Qwen2VLDecoderLayer
from video_families import prompt

import segmo
from segmo.compat import layer_reading, regions
from segmo.runtime import one_layer

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

if regions.regions is None:
    pytest.skip("this torch reads every layer", allow_module_level=True)


# One family of each kind of decoder: windows, several kinds of layers, mixtures of experts, latent attention, linear
# attention. How many layers of two rounds are stamped out in prefill and decode.
STAMPED = {
    "qwen2_vl": (3, 3),
    "qwen3_vl_moe": (3, 3),
    "qwen3_5": (2, 2),  # layers of linear attention
    "lfm3_vl": (3, 3),  # short convolutions
    "nemotron_h_omni": (4, 4),  # Mamba, and layers for which a cache holds nothing
    "exaone4_5": (2, 2),
    "kimi_k25": (2, 2),
}


@pytest.mark.parametrize("family", STAMPED)
def test_graphs_and_answers_are_those_of_layers_that_are_read_one_by_one(
    family: str, captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled(model_of(family))
    answer, notes = logits(model, 3, family), [graph.notes for graph in segmo.last_report().graphs]
    assert tuple(layers.count - layers.read for layers, _ in captured_layers[:2]) == STAMPED[family]
    told = [any("stamped out the others" in note for note in of_graph) for of_graph in notes[:2]]
    assert told == [count > 0 for count in STAMPED[family]]
    graphs = [nodes for _, nodes in captured_layers]
    matches = [[record.matches for record in graph.passes] for graph in segmo.last_report().graphs]

    captured_layers.clear()
    one_by_one(monkeypatch)
    again = compiled(model_of(family))
    assert_same(logits(again, 3, family), answer)
    assert counts(captured_layers) == [(0, 0)] * len(graphs)
    assert [[record.matches for record in graph.passes] for graph in segmo.last_report().graphs] == matches
    for (_, plain), nodes in zip(captured_layers, graphs, strict=True):
        assert tensors(nodes) == tensors(plain)


def tensors(nodes: collections.Counter[Any]) -> dict[Any, int]:
    """Those that give tensors. Numbers that layers hold are inputs of the graph where layers are read one by one."""
    return {
        node: count for node, count in nodes.items()
        if node[1] is not None and node[:2] != ("placeholder", (0, torch.float64))
    }  # fmt: skip


_SLIDING, _FULL = "sliding_attention", "full_attention"
SHARING = {
    "num_hidden_layers": 8,
    "num_kv_shared_layers": 4,
    "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _SLIDING, _FULL],
    "per_layer_config": {number: {"head_dim": 24} for number in (2, 5, 7)},
}


def sharing(tokens: int) -> torch.Tensor:
    """Of a model whose last four layers take the keys of its third and fourth, which leave them for these."""
    return logits(compiled(model_of("gemma4", rounds=1, **SHARING)), tokens, "gemma4")


def test_layers_that_share_keys_and_values(captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = sharing(3)
    # The two that leave keys are no regions. Behind them rows are dropped, and the first layer gets others.
    assert counts(captured_layers)[:2] == [(6, 4), (6, 3)]
    one_by_one(monkeypatch)
    assert_same(sharing(3), answer)


@pytest.mark.parametrize(("restarts", "layers"), [(2, (4, 3)), (1, (0, 0))])
def test_a_layer_that_leaves_keys_is_no_region_by_any_name(
    restarts: int, layers: tuple[int, int], captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves would be lost. All of its kind are read then, and all layers if that has happened too often."""
    monkeypatch.setattr(one_layer, "_LEAVES_KEYS", "of_another_name")
    monkeypatch.setattr(layer_reading, "_RESTARTS", restarts)
    answer = sharing(1)
    assert counts(captured_layers) == [layers]
    one_by_one(monkeypatch)
    assert_same(sharing(1), answer)


def doubled(layer: Any) -> None:
    layer.self_attn.scaling *= 2


def replaced(layer: Any) -> None:
    layer.mlp = torch.nn.Identity()


def hooked(layer: Any) -> None:
    layer.mlp.register_forward_hook(lambda module, args, output: output * 0)


def hooked_whole(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))


def other_forward(layer: Any) -> None:
    layer.mlp.forward = lambda hidden: hidden * 3


def other_epsilon(layer: Any) -> None:
    layer.input_layernorm.variance_epsilon = 0.5


def other_weights(layer: Any) -> None:
    layer.mlp.down_proj.weight = torch.nn.Parameter(torch.zeros_like(layer.mlp.down_proj.weight))


def no_bias(layer: Any) -> None:
    layer.self_attn.v_proj.bias = None


def other_config(layer: Any) -> None:
    config = copy.copy(layer.self_attn.config)
    config._attn_implementation = "segmo_test_doubled"
    layer.self_attn.config = config


def other_method(layer: Any) -> None:
    layer.mlp.__class__ = type("Doubled", (type(layer.mlp),), {"forward": lambda self, hidden: hidden * 2})


def other_bits(layer: Any) -> None:
    layer.mlp.gate_proj.weight = torch.nn.Parameter(layer.mlp.gate_proj.weight[:48])
    layer.mlp.up_proj.weight = torch.nn.Parameter(layer.mlp.up_proj.weight[:48])
    layer.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight[:, :48].contiguous())


def remembering(layer: Any) -> None:
    """Its attention keeps what it got, as an attribute of the module."""
    config = copy.copy(layer.self_attn.config)
    config._attn_implementation = "segmo_test_remembering"
    layer.self_attn.config = config


HOOKS = (hooked, hooked_whole)  # which Dynamo does not notice afterwards, whoever reads the layers
CHANGES = (
    doubled, replaced, other_forward, other_epsilon, other_weights, no_bias, other_config, other_method, other_bits,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _doubled_attention() -> Iterator[None]:
    """Another implementation of attention, for the one layer whose config is another."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(*args: Any, **kwargs: Any) -> Any:
        result, weights = sdpa(*args, **kwargs)
        return result * 2, weights

    def remember(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        module.remembered = query[:, :, -1]
        return attend(module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("segmo_test_doubled", attend)
    ALL_ATTENTION_FUNCTIONS.register("segmo_test_remembering", remember)
    yield
    for name in ("segmo_test_doubled", "segmo_test_remembering"):
        del ALL_ATTENTION_FUNCTIONS._global_mapping[name]


def outcome(change: Callable[[Any], None], number: int, tokens: int) -> torch.Tensor:
    """Of a model that is compiled with the change in it."""
    model = model_of()
    change(layers_of(model)[number])
    return logits(compiled(model), tokens)


@pytest.mark.parametrize(
    ("change", "number", "tokens"),
    [*((change, 2, 1) for change in CHANGES), (doubled, 0, 1), (replaced, 1, 2)],
)
def test_a_change_in_one_layer_afterwards_is_noticed(
    change: Callable[[Any], None], number: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled(model_of())
    before = logits(model, tokens)
    change(layers_of(model)[number])
    after = logits(model, tokens)
    assert not torch.equal(after, before)
    one_by_one(monkeypatch)
    assert_same(outcome(change, number, tokens), after)


# Layers that hold code that is not known, or that has effects, are no regions.
@pytest.mark.parametrize(
    ("change", "layers"),
    [
        *((change, (4, 2)) for change in (doubled, replaced, no_bias, other_bits, other_config)),
        (other_weights, (4, 1)),
        *((change, (3, 1)) for change in (*HOOKS, other_method, other_forward)),
        (remembering, (0, 0)),  # an effect, which those of the same classes may have too
    ],
)
def test_a_layer_that_is_another_from_the_start_is_read(
    change: Callable[[Any], None], layers: tuple[int, int], captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = outcome(change, 2, tokens=1)
    assert counts(captured_layers) == [layers]
    one_by_one(monkeypatch)
    assert_same(outcome(change, 2, tokens=1), answer)


def swapped(model: Any) -> None:
    layers = layers_of(model)
    layers[1], layers[2] = layers[2], layers[1]


def renumbered(model: Any) -> None:
    layers = layers_of(model)
    layers[1].self_attn.layer_idx, layers[2].self_attn.layer_idx = 2, 1


@pytest.mark.parametrize("change", [swapped, renumbered])
def test_layers_in_another_order(change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(model: Any) -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(**prompt("qwen2_vl"), past_key_values=cache)
        return torch.stack([layer.keys for layer in cache.layers])

    model = compiled(model_of())
    before = keys(model)
    change(model)
    after = keys(model)
    assert not torch.equal(after, before)
    one_by_one(monkeypatch)
    again = model_of()
    change(again)
    assert_same(keys(compiled(again)), after)


def test_code_of_others_is_read_layer_by_layer(captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's class of the user's, and transformers' with another method."""

    class Own(Qwen2VLDecoderLayer):  # type: ignore[misc, unused-ignore]  # of transformers
        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            return super().forward(hidden_states * 2, *args, **kwargs)

    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = model_of()
        for layer in layers_of(model)[2:]:
            layer.__class__ = Own
        return logits(compiled(model), 1)

    answer = run()
    assert counts(captured_layers) == [(2, 1)]
    forward = Qwen2MLP.forward
    monkeypatch.setattr(Qwen2MLP, "forward", lambda self, x: forward(self, x) * 2)
    doubled = run()
    assert counts(captured_layers)[1:] == [(0, 0)]
    assert not torch.equal(doubled, answer)


def test_a_number_that_is_another_in_every_call_is_an_input_of_the_graph_in_the_end(
    captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_reading, "_CALLS", 2)
    model = compiled(model_of())
    for epsilon in (0.1, 0.2, 0.3, 0.4, 0.5):
        layers_of(model)[1].input_layernorm.variance_epsilon = epsilon
        logits(model, 1)
    # Read one by one it is a constant once more, until it is another.
    assert counts(captured_layers) == [(4, 2), (4, 2), (0, 0), (0, 0)]


def test_layers_of_which_a_graph_was_begun_anew_are_not_tried_again(captured_layers: list[Any]) -> None:
    """Each call would trace all that stands in front of them twice."""
    model = model_of()
    remembering(layers_of(model)[3])
    reader = one_layer.reader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_layer, "reader", lambda: reader)
        logits(compiled(model), 2)
    assert counts(captured_layers) == [(0, 0), (0, 0)]
    assert reader is not None
    assert len(reader.refused) == 1


def test_the_report_counts_what_was_read_and_not_what_is_different(captured_layers: list[Any]) -> None:
    """Each layer adds a tensor of its own; what comes out of Dynamo is alike."""
    sdpa, more = ALL_ATTENTION_FUNCTIONS["sdpa"], [torch.full((1,), float(number)) for number in range(4)]

    def attend(module: Any, *args: Any, **kwargs: Any) -> Any:
        result, weights = sdpa(module, *args, **kwargs)
        return result + more[module.layer_idx], weights

    model = model_of()
    for layer in layers_of(model):
        other_config(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "segmo_test_doubled", attend)
        logits(compiled(model, keep=1, segments=2), 1)
    assert counts(captured_layers) == [(4, 4)]


def test_weights_that_layers_share(captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One MLP in two layers, and one weight in two places of a layer."""

    def shared() -> Any:
        model = model_of(rounds=3)
        layers_of(model)[3].mlp = layers_of(model)[1].mlp
        layers_of(model)[5].mlp.up_proj.weight = layers_of(model)[5].mlp.gate_proj.weight
        return compiled(model)

    answer = logits(shared(), 2)
    one_by_one(monkeypatch)
    assert_same(logits(shared(), 2), answer)


class Broken(torch.nn.Module):
    """A part of a layer that breaks the graph."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return hidden * 2


def test_layers_that_break_the_graph_are_read_one_by_one(
    captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = model_of()
        layers_of(model)[2].mlp = Broken()
        return logits(compiled(model), 1)

    with pytest.warns(UserWarning, match="ran as it was|graph"):
        answer = run()
    one_by_one(monkeypatch)
    with pytest.warns(UserWarning, match="ran as it was|graph"):
        assert_same(run(), answer)


def test_regions_inside_of_layers(captured_layers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's own nested compile region, in each layer."""

    @torch.compiler.nested_compile_region
    def scaled(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(hidden) * 2 + torch.tensor([1.0])

    class Scaled(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return scaled(hidden)

    def run() -> torch.Tensor:
        torch._dynamo.reset()
        model = model_of()
        for layer in layers_of(model):
            layer.mlp = Scaled()
        return logits(compiled(model), 2)

    answer = run()
    one_by_one(monkeypatch)
    assert_same(run(), answer)
