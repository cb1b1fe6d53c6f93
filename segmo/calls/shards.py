"""FSDP2 (``fully_shard``): weights are gathered around a whole call instead of around each module.

A sharded module gathers its weights in a hook before its forward and lets go of them in one behind it. In a graph every
such module would be a break. So where all weights have room on every rank, they are gathered first and the hooks left
out; where they have not, the model runs as it was.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from segmo.compat.sharding import is_mixed, is_sharded, plain

GIB = 1 << 30
ROOM = 0.5  # of the free memory: a prefill needs some too


class Shards:
    """The sharded modules of one model, looked for in its first call."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.modules: list[Any] | None = None
        self.gathers = True

    @contextmanager
    def gathered(self) -> Iterator[bool]:
        """Inside the block modules hold whole weights and gather none. Gives False where the model runs as it was."""
        if self.modules is None:
            self._look()
        if not self.modules or not self.gathers:
            yield self.gathers
            return
        try:
            for module in self.modules:
                module.unshard()
            with plain(self.modules):
                yield True
        finally:
            for module in self.modules:
                module.reshard()

    def _look(self) -> None:
        self.modules = [module for module in self.model.modules() if is_sharded(module)]
        if not self.modules:
            return
        if any(map(is_mixed, self.modules)):
            self.gathers, why = False, "with a mixed precision policy, each module casts what it is handed"
        else:
            self.gathers, why = _room(self.modules)
        if not self.gathers:
            warnings.warn(
                f"this model's weights are sharded (fully_shard), and {why}. It runs as it was: SegMo drops nothing. "
                "Load it whole on each rank, with the option ranks to share prompts; or shard it over more devices",
                stacklevel=2,
            )


def _room(modules: list[Any]) -> tuple[bool, str]:
    """Whether every rank has room for all weights at once, and why not; ranks have to do the same."""
    parameters = [each for each in modules[0].parameters() if hasattr(each, "device_mesh")]
    parameters += [each for module in modules[1:] for each in module.parameters() if hasattr(each, "device_mesh")]
    parameters = list({id(each): each for each in parameters}.values())
    wanted = sum(each.numel() * each.element_size() for each in parameters)
    device = parameters[0].device
    least = torch.tensor([free_bytes(device)], device=device)
    shards = next(at for at, placed in enumerate(parameters[0].placements) if placed.is_shard())
    dist.all_reduce(least, dist.ReduceOp.MIN, parameters[0].device_mesh.get_group(shards))
    free = int(least)
    return wanted <= ROOM * free, (
        f"a rewritten graph takes all of them at once, {wanted / GIB:.1f} GiB of the {free / GIB:.1f} GiB that are free"
    )


def free_bytes(device: torch.device) -> int:
    """Memory of this rank's device that is free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
