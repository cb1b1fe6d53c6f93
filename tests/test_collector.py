"""What was there before a compilation is left out of the collector's rounds while it lasts, and no longer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from segmo.compat.collector import collector_spared


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    gc.unfreeze()
    yield
    gc.unfreeze()


class Backend:
    """Notes how many objects are left out while it compiles."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, gm: GraphModule, inputs: Any) -> Any:
        self.seen.append(gc.get_freeze_count())
        if len(inputs) > 1:
            raise ValueError("two inputs")
        return gm.forward


def test_only_while_something_is_compiled_in_the_block() -> None:
    backend = Backend()
    run, other = torch.compile(lambda x: x + 1, backend=backend), torch.compile(lambda x: x + 2, backend=backend)
    with collector_spared():
        assert gc.get_freeze_count() == 0
        run(torch.ones(2))
        assert gc.get_freeze_count() == 0
    other(torch.ones(2))
    assert backend.seen[0] > 1000
    assert backend.seen[1] == 0


def test_a_compilation_that_fails_leaves_nothing_out() -> None:
    backend = Backend()
    with collector_spared(), pytest.raises(Exception, match="two inputs"):
        torch.compile(lambda x, y: x + y, backend=backend)(torch.ones(2), torch.ones(2))
    assert backend.seen[0] > 1000
    assert gc.get_freeze_count() == 0


def test_what_the_user_has_left_out_stays_so() -> None:
    backend = Backend()
    gc.freeze()
    mine = gc.get_freeze_count()
    with collector_spared():
        torch.compile(lambda x: x * 3, backend=backend)(torch.ones(2))
    assert backend.seen[0] <= mine
    assert gc.get_freeze_count() > 0
