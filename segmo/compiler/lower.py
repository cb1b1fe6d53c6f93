"""The rest of a graph, once the passes have run: compiled by inductor, or as it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from segmo.compat.dynamo import RestartAnalysis
from segmo.compat.inductor import compile_graph
from segmo.compat.regions import expand
from segmo.errors import CompileError, SegMoError, in_one_line
from segmo.passes.snapshot import Snapshot
from segmo.runtime.rest import Rest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lowered:
    """What runs in a graph's place.

    Attributes:
        run: as the graph is called.
        by_inductor: inductor has compiled it.
        note: which it is and why, for the report.
    """

    run: Callable[..., Any]
    by_inductor: bool
    note: str


def lower(gm: GraphModule, inputs: Sequence[Any], rest: Rest, settings: dict[str, Any], each: str = "") -> Lowered:
    """The graph as it was chosen to be run.

    Args:
        gm: the graph; inductor rewrites it.
        inputs: of the traced call.
        rest: the choice.
        settings: of inductor's.
        each: why inductor compiles each layer.

    Raises:
        CompileError: inductor failed where it must not.
    """
    if not rest.inductor:
        return _as_it_is(gm.forward, rest.why)
    before, start = Snapshot(gm), time.perf_counter()
    try:
        run: Any = compile_graph(gm, inputs, settings, rest.on_cpu)
    except RestartAnalysis:  # is how a lowering asks Dynamo to trace once more
        raise
    except Exception as error:
        before.restore()
        if expand(gm).count:  # what outline-layers has put into bodies
            each = f"each layer, as it failed with one body for several: {in_one_line(error)}"
            log.warning("inductor compiles %s", each)
            return lower(gm, inputs, rest, settings, f"; {each}")
        if rest.must:
            raise _explained(error) from error
        log.warning("inductor failed, so the graph is run as it is: %s", in_one_line(error))
        return _as_it_is(gm.forward, f"inductor, {rest.why}, failed here: {in_one_line(error)}")
    seconds = time.perf_counter() - start
    return Lowered(run, True, f"rest of the graph: by inductor ({rest.why}; compiled in {seconds:.1f} s{each})")


def _as_it_is(run: Callable[..., Any], why: str) -> Lowered:
    return Lowered(run, False, f"rest of the graph: as it is ({why})")


def _explained(error: Exception) -> SegMoError:
    if torch.is_grad_enabled():
        return CompileError(
            "inductor compiles the backward pass as well while gradients are recorded, and SegMo's operators have "
            f"none: run the model under torch.inference_mode() or torch.no_grad() ({in_one_line(error)})"
        )
    if isinstance(error, SegMoError):
        return error
    return CompileError(
        f"inductor could not compile what the passes left of a graph ({in_one_line(error)}). On a CPU, "
        'lowering="flash" runs that as it is'
    )


def device_and_dtype(inputs: Sequence[Any]) -> tuple[torch.device, torch.dtype]:
    """Of a graph's weights: a device that is not the CPU if there is one, and the dtype of its largest input."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    floats = [value for value in tensors if value.is_floating_point()]
    largest = max(floats, key=_known_size, default=None)
    device = next((value.device for value in tensors if value.device.type != "cpu"), torch.device("cpu"))
    return device, torch.float32 if largest is None else largest.dtype


def _known_size(value: torch.Tensor) -> int:
    """Number of elements; 0 where a size is symbolic, which no weight's is: comparing it would be a guard."""
    numbers: tuple[object, ...] = tuple(value.shape)
    return value.numel() if all(isinstance(number, int) for number in numbers) else 0
