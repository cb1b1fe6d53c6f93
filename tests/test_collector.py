"""The collector makes no full rounds while something is compiled, and is as it was behind that."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import build, prompt
from torch.fx import GraphModule

import segmo
from segmo.compat.collector import YOUNG, collector_spared

MINE = (701, 11, gc.get_threshold()[2])


@pytest.fixture(autouse=True)
def mine() -> Iterator[None]:
    """Thresholds of the user's own."""
    torch._dynamo.reset()
    before = gc.get_threshold()
    gc.set_threshold(*MINE)
    yield
    gc.enable()
    gc.set_threshold(*before)


class Backend:
    """Notes the collector's thresholds while it compiles."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def __call__(self, gm: GraphModule, inputs: Any) -> Any:
        self.seen.append(gc.get_threshold())
        if len(inputs) > 1:
            raise ValueError("two inputs")
        return gm.forward


def test_only_while_something_is_compiled_in_the_block() -> None:
    backend = Backend()
    run, other = torch.compile(lambda x: x + 1, backend=backend), torch.compile(lambda x: x + 2, backend=backend)
    with collector_spared():
        assert gc.get_threshold() == MINE
        run(torch.ones(2))
        assert gc.get_threshold() == MINE
    other(torch.ones(2))
    assert backend.seen[0][:2] == (YOUNG, MINE[1])
    assert backend.seen[1] == MINE


def test_full_rounds_begin_again_behind_a_compilation_that_fails() -> None:
    backend = Backend()
    with collector_spared(), pytest.raises(Exception, match="two inputs"):
        torch.compile(lambda x, y: x + y, backend=backend)(torch.ones(2), torch.ones(2))
    assert backend.seen[0][0] == YOUNG
    assert gc.get_threshold() == MINE


def test_no_full_round_is_made() -> None:
    rounds = []

    def backend(gm: GraphModule, inputs: Any) -> Any:
        gc.callbacks.append(lambda phase, info: rounds.append(info["generation"]))
        kept = [[each] for each in range(2_000_000)]  # by themselves these make several full rounds
        gc.callbacks.pop()
        assert kept
        return gm.forward

    with collector_spared():
        torch.compile(lambda x: x * 5, backend=backend)(torch.ones(2))
    assert rounds
    assert 2 not in rounds


def test_models_that_were_dropped_go_where_a_program_does_little_but_compile() -> None:
    models, alive = [], []
    for _ in range(7):
        torch._dynamo.reset()
        model = build("qwen2_vl")
        segmo.compile(model, keep=0.5)
        model.generate(**prompt("qwen2_vl", frames=6), max_new_tokens=2, do_sample=False)
        models.append(weakref.ref(model))
        del model
        alive.append(sum(each() is not None for each in models))
    assert max(alive) <= 5


def test_what_is_finalized_behind_a_compilation_may_compile() -> None:
    """Torch holds a lock where it says that a compilation ends. In a process of its own, which would hang."""
    code = """
import torch
from segmo.compat.collector import collector_spared

class Served:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        torch.compile(lambda x: x * 3, backend="eager")(torch.ones(2))

served = [Served()]
torch._dynamo.callback.callback_handler.register_end_callback(lambda _: served.clear())
with collector_spared():
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "ended", done.stderr


@pytest.mark.parametrize("off", ["disabled", "no threshold"])
def test_a_collector_that_is_off_is_left_alone(off: str) -> None:
    backend = Backend()
    if off == "disabled":
        gc.disable()
    else:
        gc.set_threshold(0)
    before = gc.get_threshold()
    with collector_spared():
        torch.compile(lambda x: x * 3, backend=backend)(torch.ones(2))
    assert backend.seen == [before]
    assert gc.get_threshold() == before
    assert gc.isenabled() is (off != "disabled")


def test_what_the_user_has_left_out_stays_so() -> None:
    backend = Backend()
    gc.freeze()
    try:
        mine = gc.get_freeze_count()
        with collector_spared():
            torch.compile(lambda x: x * 6, backend=backend)(torch.ones(2))
        assert backend.seen[0][0] == YOUNG
        assert mine >= gc.get_freeze_count() > mine // 2  # some of them are gone by now
    finally:
        gc.unfreeze()


def test_thresholds_that_are_set_meanwhile_stay() -> None:
    def backend(gm: GraphModule, inputs: Any) -> Any:
        gc.set_threshold(5_000, 7, 8)
        return gm.forward

    with collector_spared():
        torch.compile(lambda x: x * 4, backend=backend)(torch.ones(2))
    assert gc.get_threshold()[:2] == (5_000, 7)
