"""The ranks of a process group: exchanges that count their bytes and failures that name a rank and a step.

Everything that travels does so through PyTorch's functional collectives, which start at once and are waited
for when their result is used. Each exchange announces itself in the process group's store first; when one
fails, the announcements tell which rank never got there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh

from segmo.compat.groups import Store, all_gather, default_store, group_of
from segmo.errors import OptionError, RankError

_Result = TypeVar("_Result")

# What an error about ranks that differ ends with.
ALONE = "The option ranks asks for that; ranks with prompts of their own (data parallel) leave it at None."

# How long survivors wait for each other's account of a failure.
GRACE_SECONDS = 3.0


@dataclass
class Traffic:
    """What one rank has received and how often it took part in an exchange."""

    bytes_received: int = 0
    exchanges: int = 0


@dataclass
class Ranks:
    """One rank's view of the group that shares a prefill.

    Attributes:
        group: the process group; None stands for a single process, where nothing is ever sent.
        traffic: counted over the life of this object.
    """

    group: dist.ProcessGroup | None
    traffic: Traffic = field(default_factory=Traffic)
    _entered: int = 0

    @classmethod
    def of(cls, where: dist.ProcessGroup | DeviceMesh | None = None) -> Ranks:
        """Ranks of a group, of a one-dimensional mesh, or of the default group when there is one.

        Raises:
            RankError: the mesh has several dimensions.
        """
        if isinstance(where, DeviceMesh):
            if where.ndim != 1:
                raise RankError(
                    f"segments are spread over one dimension, and the mesh has {where.ndim} "
                    f"({where.mesh_dim_names}); hand in one of them, such as mesh['segments']"
                )
            return cls(where.get_group())
        if where is None and dist.is_available() and dist.is_initialized():
            return cls(dist.distributed_c10d._get_default_group())
        return cls(where)

    @classmethod
    def asked(cls, name: str | None) -> Ranks:
        """Ranks of the option ``ranks``: of no group for None, of the default group for "all", or of a group by name.

        Raises:
            OptionError: there is no such group, or this process is not in it.
        """
        if name is None:
            return cls(None)
        if name == "all":
            return cls.of()
        try:
            ranks = cls(group_of(name))
        except RuntimeError as error:
            raise OptionError(
                f'ranks is {name!r}, which is no process group of this process; None, "all" or a group'
            ) from error
        if ranks.rank < 0:
            raise OptionError(f"ranks is {name!r}, a process group that this process is not in")
        return ranks

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def world(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    def start_gather(self, value: Tensor, step: str) -> Callable[[], Tensor]:
        """Starts an all-gather; the returned function waits and gives (W, *shape), in order of the ranks.

        Raises (both may):
            RankError: a rank died, hung or brought another shape.
        """
        world = self.world
        if world == 1:
            return lambda: value[None]
        self._enter(step)
        self.traffic.exchanges += 1
        self.traffic.bytes_received += (world - 1) * value.numel() * value.element_size()
        if value.numel() == 0:
            return lambda: value.new_empty(world, *value.shape)
        group = self._sure_group
        return self._start(lambda: all_gather(value.contiguous()[None], group), step)

    def gather(self, value: Tensor, step: str) -> Tensor:
        """All ranks' tensors of the same shape, stacked: (W, *shape)."""
        return self.start_gather(value, step)()

    def start_share(self, value: Tensor, source: int, step: str) -> Callable[[], Tensor]:
        """Starts a broadcast from rank ``source``; the others bring a tensor of the same shape and dtype."""
        if self.world == 1:
            return lambda: value
        self._enter(step)
        self.traffic.exchanges += 1
        if self.rank != source:
            self.traffic.bytes_received += value.numel() * value.element_size()
        group = self._sure_group
        return self._start(lambda: collectives.broadcast(value.contiguous(), source, group), step)

    def share(self, value: Tensor, source: int, step: str) -> Tensor:
        """The tensor of rank ``source``, on every rank."""
        return self.start_share(value, source, step)()

    def start_reduce(self, value: Tensor, operation: str, step: str) -> Callable[[], Tensor]:
        """Starts an all-reduce (``"sum"`` or ``"max"``); its result is bit for bit the same on all ranks."""
        if self.world == 1:
            return lambda: value
        self._enter(step)
        self.traffic.exchanges += 1
        self.traffic.bytes_received += 2 * value.numel() * value.element_size() * (self.world - 1) // self.world
        group = self._sure_group
        return self._start(lambda: collectives.all_reduce(value.contiguous(), operation, group), step)

    def start_exchange(self, rows: Tensor, counts: Sequence[Sequence[int]], step: str) -> Callable[[], Tensor]:
        """Starts to send rows from rank to rank.

        Args:
            rows: what this rank sends, first to rank 0, then to rank 1, and so on.
            counts: how many rows each rank sends to each, (W, W), the same on all ranks.

        Returns:
            A function that waits and gives what arrived, first from rank 0, then from rank 1, and so on.
        """
        if not any(map(any, counts)):
            return lambda: rows.new_empty(0, *rows.shape[1:])
        self._enter(step)
        arriving = [sent[self.rank] for sent in counts]
        self.traffic.exchanges += 1
        self.traffic.bytes_received += sum(arriving) * math.prod(rows.shape[1:]) * rows.element_size()
        group, leaving = self._sure_group, list(counts[self.rank])
        return self._start(lambda: collectives.all_to_all_single(rows.contiguous(), arriving, leaving, group), step)

    def exchange(self, rows: Tensor, counts: Sequence[Sequence[int]], step: str) -> Tensor:
        """What :meth:`start_exchange` gives, waited for."""
        return self.start_exchange(rows, counts, step)()

    @property
    def _sure_group(self) -> dist.ProcessGroup:
        assert self.group is not None
        return self.group

    def _start(self, act: Callable[[], Tensor], step: str) -> Callable[[], Tensor]:
        pending = self._guard(act, step)
        return lambda: self._guard(lambda: _wait(pending), step)

    # --- failures

    @property
    def _store(self) -> Store:
        return default_store("segmo/steps")

    def _enter(self, step: str) -> None:
        """Announces that this rank has reached an exchange."""
        self._entered += 1
        self._guard(lambda: self._store.set(f"at/{self.rank}", f"{self._entered} {step}"), step)

    def _guard(self, act: Callable[[], _Result], step: str) -> _Result:
        """Runs a part of an exchange and turns its failure into one that names rank and step."""
        try:
            return act()
        except RuntimeError as error:
            raise RankError(self._account(step, error)) from error

    def _account(self, step: str, error: RuntimeError) -> str:
        """What is known about a failed exchange, from what the ranks announced."""
        head = f"rank {self.rank} of {self.world} failed at step {step!r}"
        reason = str(error).splitlines()[0][:200]
        try:
            self._store.set(f"failed/{self.rank}", step)
            behind, silent = self._suspects()
        except RuntimeError:
            return f"{head}; the store that rank 0 or its launcher hosts is gone too. First cause: {reason}"
        if behind:
            return f"{head}: {behind}. First cause: {reason}"
        if silent:
            return f"{head}: no sign of life from rank {silent}. First cause: {reason}"
        return f"{head}; all ranks had reached it. First cause: {reason}"

    def _suspects(self) -> tuple[str, str]:
        """Ranks that never reached this exchange, with their last step, and ranks that fell silent in it."""
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            at = {rank: self._last(rank) for rank in range(self.world) if rank != self.rank}
            behind = [
                f"rank {rank} never reached it, its last step was {step!r}"
                for rank, (entered, step) in at.items()
                if entered < self._entered and not self._store.check([f"failed/{rank}"])
            ]
            silent = [str(rank) for rank in at if not self._store.check([f"failed/{rank}"])]
            if time.monotonic() > deadline or not silent:
                return "; ".join(behind), ", ".join(silent)
            time.sleep(0.1)

    def _last(self, rank: int) -> tuple[int, str]:
        key = f"at/{rank}"
        if not self._store.check([key]):
            return 0, "none"
        count, _, step = self._store.get(key).decode().partition(" ")
        return int(count), step


def _wait(pending: Tensor) -> Tensor:
    done: Tensor = collectives.wait_tensor(pending)  # type: ignore[no-untyped-call]
    return done


def join(timeout: timedelta, device: torch.device | None = None) -> Ranks:
    """Joins the process group that torchrun describes in the environment; the same program runs alone.

    Args:
        timeout: after which a rank that does not answer ends the job.
        device: chooses NCCL for ``cuda`` and gloo otherwise.
    """
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        return Ranks.of()
    cuda = device is not None and device.type == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout)
    return Ranks.of()
