"""A cut whose other tokens are elsewhere refuses whatever needs them, and follows what each row computes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

from segmo.passes.analyse import Merge
from segmo.passes.reasons import DoesNotApply
from segmo.passes.tail_cut import TailCut

N, H = 6, 4  # tokens, size of a head


def cut(call: Any, *args: Any, method: str | None = None) -> list[int]:
    """The size of what a call gives behind the last attention, once that has the last token's row alone."""
    graph = Graph()

    def placed(node: Node, value: Any) -> Node:
        node.meta["example_value"] = value
        return node

    embeds = placed(graph.placeholder("embeds"), torch.zeros(1, N, 8))
    attention = placed(graph.placeholder("attention"), torch.zeros(1, 2, N, H))
    value = getattr(torch.zeros(1, 2, N, H), method)(*args) if method else call(torch.zeros(1, 2, N, H), *args)
    made = graph.call_method(method, (attention, *args)) if method else graph.call_function(call, (attention, *args))
    placed(made, value)
    after = placed(graph.call_method("mul", (made, 2)), value)
    tail = TailCut(graph, Merge(embeds, embeds, embeds, None), ())
    tail.follow(attention)
    return list(tail.value(after).shape)


@pytest.mark.parametrize(
    ("call", "args", "method"),
    [
        (torch.mean, (2,), None),
        (torch.amax, (2, True), None),
        (torch.sum, ((1, 2),), None),
        (torch.cumsum, (2,), None),
        (torch.flip, ((2,),), None),
        (torch.softmax, (2,), None),
        (None, (2,), "sum"),
        (None, (), "mean"),
        (None, (1, 2), "roll"),
        (None, (2, 0), "select"),
    ],
)  # fmt: skip
def test_what_needs_the_other_tokens_is_refused(call: Any, args: tuple[Any, ...], method: str | None) -> None:
    with pytest.raises(DoesNotApply):
        cut(call, *args, method=method)


def test_a_product_over_tokens_is_refused() -> None:
    graph = Graph()
    embeds, attention = graph.placeholder("embeds"), graph.placeholder("attention")
    embeds.meta["example_value"] = torch.zeros(1, N, 8)
    attention.meta["example_value"] = rows = torch.zeros(1, 2, N, H)
    turned = graph.call_method("transpose", (attention, 2, 3))
    turned.meta["example_value"] = rows.transpose(2, 3)
    product = graph.call_function(torch.matmul, (turned, attention))
    product.meta["example_value"] = torch.matmul(rows.transpose(2, 3), rows)
    with pytest.raises(DoesNotApply, match="tokens are added up or picked from"):
        TailCut(graph, Merge(embeds, embeds, embeds, None), ()).follow(attention)


@pytest.mark.parametrize(
    ("call", "args", "method", "size"),
    [
        (torch.mean, (3,), None, [1, 2, 1]),
        (torch.sum, (1,), None, [1, 1, H]),
        (torch.softmax, (3,), None, [1, 2, 1, H]),
        (torch.nn.functional.silu, (), None, [1, 2, 1, H]),
        (None, (1, 2), "transpose", [1, 1, 2, H]),
    ],
)  # fmt: skip
def test_what_a_row_computes_alone_is_followed(
    call: Any, args: tuple[Any, ...], method: str | None, size: list[int]
) -> None:
    assert cut(call, *args, method=method) == size
