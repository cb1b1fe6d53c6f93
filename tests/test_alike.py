"""Which layers differ in their weights and their number alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from segmo.compat.alike import counterparts

SHARED = object()


class Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx = number
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)
        self.act = torch.nn.functional.silu
        self.gate = functools.partial(torch.nn.functional.gelu, approximate="tanh")
        self.scaling, self.name, self.window = 0.5, "full", None
        self.more: Any = {"rope": [1.0, 2.0], "parts": (self.up, "x"), "kinds": {1, 2}}
        self.shared = SHARED
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("absent", None)


def test_each_tensor_has_its_counterpart() -> None:
    one, other = Layer(0), Layer(1)
    found = counterparts(one, other)
    expected = {id(value): getattr_path(other, name) for name, value in tensors(one)}
    assert found is not None
    assert found.keys() == expected.keys()
    assert all(found[key] is value for key, value in expected.items())


def tensors(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*layer.named_parameters(), *layer.named_buffers()]


def getattr_path(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def changed(name: str, value: Any) -> Callable[[Layer], None]:
    return lambda layer: setattr(layer, name, value)


CHANGES: dict[str, Callable[[Layer], Any]] = {
    "number": changed("scaling", 0.25),
    "kind of number": changed("scaling", True),
    "word": changed("name", "sliding"),
    "none": changed("window", 4),
    "function": changed("act", torch.nn.functional.gelu),
    "bound function": changed("gate", functools.partial(torch.nn.functional.silu, approximate="tanh")),
    "bound argument": changed("gate", functools.partial(torch.nn.functional.gelu, approximate="none")),
    "attribute of a bound function": lambda layer: setattr(layer.gate, "more", 1),
    "object": changed("shared", object()),
    "attribute": changed("extra", 1),
    "list": lambda layer: layer.more["rope"].append(3.0),
    "tuple": lambda layer: layer.more.update(parts=(layer.down, "x")),
    "set": lambda layer: layer.more["kinds"].add(3),
    "shape": changed("up", nn.Linear(4, 9)),
    "dtype": lambda layer: layer.down.to(torch.bfloat16),
    "strides": lambda layer: setattr(layer.down.weight, "data", layer.down.weight.data.t().contiguous().t()),
    "gradient": lambda layer: layer.down.requires_grad_(False),
    "bias": lambda layer: setattr(layer.up, "bias", None),
    "class": changed("down", nn.Sequential()),
    "buffer": changed("table", torch.zeros(4)),
    "tensor": lambda layer: setattr(layer.down.weight, "scale", 2.0),
    "subclass": lambda layer: setattr(layer, "table", torch.zeros(3).as_subclass(Own)),
    "mode": lambda layer: layer.up.eval(),
    "forward": lambda layer: setattr(layer.up, "forward", lambda x: x),
    "hook": lambda layer: layer.up.register_forward_hook(print),
    "hook before": lambda layer: layer.register_forward_pre_hook(print, with_kwargs=True),
    "shared weight": lambda layer: setattr(layer.up, "weight", layer.up.bias),
    "tied": lambda layer: setattr(layer, "absent", layer.table),
}


class Own(torch.Tensor):
    pass


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("first", [True, False])
def test_anything_else_makes_a_difference(what: str, first: bool) -> None:
    one, other = Layer(0), Layer(1)
    CHANGES[what](one if first else other)
    assert counterparts(one, other) is None


def test_what_is_tied_in_both_is_alike() -> None:
    one, other = Layer(0), Layer(1)
    for layer in (one, other):
        layer.absent = layer.table
    assert counterparts(one, other) is not None


def test_hooks_in_both_make_them_different() -> None:
    one, other = Layer(0), Layer(1)
    for layer in (one, other):
        layer.register_forward_hook(print)
    assert counterparts(one, other) is None
