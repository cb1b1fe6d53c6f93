"""Nested compile regions of a graph are put in their place: the same numbers, and nothing left of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from segmo.compat import regions

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

if regions.regions is None:
    pytest.skip("this torch has no regions", allow_module_level=True)


@torch.compiler.nested_compile_region
def inner(x: Tensor, weight: Tensor) -> Tensor:
    return torch.sin(x) @ weight


@torch.compiler.nested_compile_region
def outer(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = inner(x, weight) + 1
    return inner(y, weight), y


@torch.compiler.nested_compile_region
def branching(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x, w: x @ w, lambda x, w: x @ w - 1, (x, weight))


def once(x: Tensor, weights: list[Tensor]) -> Tensor:
    return inner(x, weights[0])


def nested(x: Tensor, weights: list[Tensor]) -> Tensor:
    for weight in weights:
        x, y = outer(x, weight)
        x = x - y
    return x


def with_branches(x: Tensor, weights: list[Tensor]) -> Tensor:
    for weight in weights:
        x = branching(inner(x, weight), weight)
    return x


@pytest.mark.parametrize(("function", "calls"), [(once, 1), (nested, 3), (with_branches, 6)])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_put_in_their_place_gives_the_same(function: Callable[..., Tensor], calls: int, sign: int) -> None:
    """Regions inside of regions, and graphs that a region refers to by name."""
    found: list[regions.Layers] = []

    def backend(gm: GraphModule, inputs: Any) -> Callable[..., Any]:
        found.append(regions.expand(gm))
        gm.graph.lint()
        assert not [node for node in gm.graph.nodes if "invoke_subgraph" in str(node.target)]
        assert {name for name, _ in gm.named_children()} == {node.target for node in gm.graph.find_nodes(op="get_attr")}
        return gm.forward

    x, weights = torch.rand(3, 4) * sign, [torch.rand(4, 4) for _ in range(3)]
    with torch.no_grad(), torch._dynamo.config.patch(inline_single_use_invoke_subgraph=False):
        compiled = torch.compile(function, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x, weights), function(x, weights))
    assert [layers.count for layers in found] == [calls]
