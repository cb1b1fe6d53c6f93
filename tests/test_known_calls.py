"""A cut runs a call once for all layers in which it reads the same sizes, and again where it gives something else."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

from segmo.passes.cut.known import KnownCalls


class Runs:
    """Runs calls on real tensors and counts how often."""

    def __init__(self, *targets: Any) -> None:
        self.graph, self.count = Graph(), 0
        place = self.graph.placeholder("x")
        for target in targets:
            self.graph.call_method(target, (place,)) if isinstance(target, str) else self.graph.call_function(target)
        self.known = KnownCalls(self.graph)

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        node = self.graph.call_function(target)
        return self.known.value(node, args, kwargs, self._run)

    def _run(self, node: Node, args: Any, kwargs: Any) -> Any:
        self.count += 1
        target: Any = node.target
        return target(*args, **kwargs)


def test_a_call_on_the_same_sizes_is_run_once() -> None:
    runs = Runs()
    first = runs(torch.add, torch.ones(2, 3), torch.zeros(3))
    assert runs(torch.add, torch.randn(2, 3), torch.randn(3)) is first
    assert runs.count == 1


@pytest.mark.parametrize(
    ("target", "args", "other"),
    [
        (torch.add, (torch.ones(2), 1), (torch.ones(2), 1.0)),
        (torch.add, (torch.ones(2), 1), (torch.ones(2), True)),
        (torch.mul, (torch.ones(2), 1), (torch.ones(3), 1)),
        (torch.mul, (torch.ones(2, 2), 1), (torch.ones(2, 2).T, 1)),
        (torch.mul, (torch.ones(2), 1), (torch.ones(2, dtype=torch.double), 1)),
        (torch.reshape, (torch.ones(4), (2, 2)), (torch.ones(4), (4, 1))),
        (operator.getitem, (torch.ones(4), slice(0, 2)), (torch.ones(4), slice(0, 3))),
    ],
)
def test_a_call_on_something_else_is_run(target: Any, args: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    runs = Runs()
    for given in (args, other):
        value = runs(target, *given)
        expected = target(*given)
        assert (value.shape, value.stride(), value.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert runs.count == 2


def test_a_block_in_which_calls_give_something_else_is_told_from_what_is_around_it() -> None:
    runs = Runs()
    dtypes = []
    x, weight = torch.ones(2, 2), torch.ones(2, 2)
    for _ in range(2):
        dtypes.append(runs(torch.nn.functional.linear, x, weight).dtype)
        inside = runs(torch.amp.autocast_mode._enter_autocast, "cpu", torch.bfloat16, True, False)
        dtypes.append(runs(torch.nn.functional.linear, x, weight).dtype)
        runs(torch.amp.autocast_mode._exit_autocast, inside)
    assert dtypes == [torch.float32, torch.bfloat16] * 2


def test_where_a_tensor_gets_other_sizes_in_place_no_two_values_are_one() -> None:
    runs = Runs("unsqueeze_")
    assert runs(torch.neg, torch.ones(2)) is not runs(torch.neg, torch.ones(2))
