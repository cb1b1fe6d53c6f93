"""Who computes what the passes leave of a graph: inductor, or PyTorch as it stands; and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from segmo.errors import PlanError
from segmo.options import Options
from segmo.runtime.cost.gain import Fusion
from segmo.runtime.cost.store import load_device

# How many times faster inductor must be. Less is within what other work on a machine and another model's sizes make of
# a measurement, and would not pay for compiling, which takes seconds for each kind of layer.
WORTH = 1.15


@dataclass(frozen=True)
class Rest:
    """The choice for one graph.

    Attributes:
        inductor: inductor compiles it; otherwise it is run as it is.
        why: in words.
        must: where inductor fails, so does the call; otherwise the graph is then run as it is.
        on_cpu: inductor compiles for the CPU.
    """

    inductor: bool
    why: str
    must: bool = False
    on_cpu: bool = True


def surely_inductor(options: Options, on_gpu: bool) -> bool:
    """Whether inductor compiles every graph, whatever it is and whatever was measured."""
    return options.lowering == "inductor" or (options.lowering == "auto" and on_gpu)


def choose_rest(
    options: Options, kind: str, device: torch.device, dtype: torch.dtype, folder: Path | None = None
) -> Rest:
    """The choice for a graph.

    Args:
        options: the user's.
        kind: of the graph: "prefill", "decode" or "other".
        device, dtype: of its weights.
        folder: with what was measured, if not in the user's cache folder.
    """
    on_gpu = device.type != "cpu"
    if surely_inductor(options, on_gpu):
        why = "on a GPU" if options.lowering == "auto" else 'lowering="inductor"'
        return Rest(True, why, must=True, on_cpu=not on_gpu)
    if options.lowering != "auto":
        return Rest(False, f'lowering="{options.lowering}"')
    if options.ranks is not None or _several_processes():
        return Rest(False, "several processes must compute alike, and what was measured may differ between machines")
    if torch.is_grad_enabled():
        return Rest(False, "gradients are recorded")
    if kind not in ("prefill", "decode"):
        return Rest(False, "it is neither a prefill nor a decode step")
    return _measured(kind, device, dtype, folder)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _measured(kind: str, device: torch.device, dtype: torch.dtype, folder: Path | None) -> Rest:
    name = str(dtype).removeprefix("torch.")
    command = f"`segmo calibrate --dtype {name}`"
    try:
        device_measured = load_device(device, dtype, folder)
    except PlanError as error:
        return Rest(False, str(error))
    fusion = device_measured.fusion if device_measured else None
    if fusion is None:
        threads = torch.get_num_threads()
        return Rest(False, f"not measured in {name} with {threads} thread{'s' * (threads > 1)}: {command} does")
    if fusion.stale():
        return Rest(False, f"{fusion.stale()}: {command} measures again")
    return worth(fusion, kind)


def worth(fusion: Fusion, kind: str) -> Rest:
    """The choice by what was measured.

    Args:
        kind: "prefill" or "decode".
    """
    gain = fusion.prefill if kind == "prefill" else fusion.decode
    if gain is None:
        return Rest(False, f"inductor failed when this machine was calibrated, {fusion.date}: {fusion.failed}")
    if gain.ratio >= WORTH and gain.low > 1:
        return Rest(True, f"{gain.ratio:.2f}x faster than as it is on this machine, calibrated {fusion.date}")
    at = "" if kind == "prefill" else " at a decode step"
    if gain.ratio >= WORTH:
        return Rest(False, f"inductor {gain.low:.2f}x to {gain.high:.2f}x{at} on this machine: not sure to win")
    return Rest(False, f"inductor {gain.ratio:.2f}x{at} on this machine: not worth its compilation")
