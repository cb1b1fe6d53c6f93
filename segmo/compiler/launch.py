"""One program, alone or on the ranks that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from segmo.checked import device_named
from segmo.errors import OptionError
from segmo.runtime.distributed.ranks import Ranks, join

CACHES = ("gather", "sharded")


@dataclass(frozen=True)
class Launch:
    """This process among its ranks.

    Attributes:
        ranks: of the job; a single process has rank 0 of 1.
        device: where this rank's model belongs.
        options: for :func:`segmo.compile`, beside the user's own; where there are several ranks, that they share.
    """

    ranks: Ranks
    device: torch.device
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def speaks(self) -> bool:
        """Whether this rank prints and writes files; the others know the same answer and stay silent."""
        return self.ranks.rank == 0


def _device(asked: str | None) -> torch.device:
    """The device asked for; with several GPUs, that of this rank on its machine."""
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    device = device_named(asked)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _options(cache: str, pipeline: str | None) -> dict[str, Any]:
    from segmo.passes.pipeline import DEFAULT

    if cache not in CACHES:
        raise OptionError(f"cache is {cache!r}; it must be one of {', '.join(map(repr, CACHES))}")
    if cache == "gather":
        return {}
    if pipeline is not None:
        raise OptionError(f"write shard-segments{{cache={cache}}} into the pipeline that you give")
    return {"pipeline": DEFAULT.replace("shard-segments", f"shard-segments{{cache={cache}}}")}


@contextmanager
def launched(
    device: str | None = None,
    *,
    cache: str = "gather",
    pipeline: str | None = None,
    timeout: timedelta = timedelta(minutes=10),
) -> Iterator[Launch]:
    """Joins the ranks that torchrun has started, for as long as the block runs; the same program runs alone.

    A process group that exists already is used and left as it is. All ranks must do the same in the block::

        with segmo.launched() as launch:
            model = load(launch.device)
            segmo.compile(model, keep=0.25, **launch.options)
            ...
            if launch.speaks:
                print(answer)

    Args:
        device: such as ``"cuda"`` (then each rank has its own GPU) or ``"cpu"``; a GPU if there is one.
        cache: where keys and values are after prefill, ``"gather"`` or ``"sharded"``.
        pipeline: that the user gave, if any; it says itself how its cache is kept.
        timeout: after which a rank that does not answer ends the job on all ranks.

    Raises:
        OptionError: there is no such device; or an unknown ``cache``, or one beside a pipeline.
        RankError: ranks are already joined in a group that SegMo cannot use.
    """
    options, place = _options(cache, pipeline), _device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    found = dist.is_available() and dist.is_initialized()
    ranks = join(timeout, place)
    finished = False
    try:
        yield Launch(ranks, place, {"ranks": "all", **options} if ranks.world > 1 else options)
        finished = True
    finally:
        if ranks.group is not None and not found:
            if finished:  # a rank that leaves early would take the store away from the others
                dist.barrier()
            dist.destroy_process_group()
