"""What the operators of one process group share: its ranks, and the schedule of the prefill that decode goes on from.

Operators pass tensors and strings only, so a group is named by its string and found again here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from segmo.compat.groups import group_of
from segmo.errors import PromptError, RankError
from segmo.runtime.cost.device import GIB, Device
from segmo.runtime.cost.shape import ModelShape, VisionShape
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.schedule import RankSchedule
from segmo.runtime.partition.plan import Plan


@dataclass(frozen=True)
class Settings:
    """How prefills of one model are spread over one group; travels through a graph as JSON.

    Attributes:
        group: name of the process group.
        shape, devices: what the plan is made for, a device per rank.
        method, split, cache: as in :func:`segmo.runtime.partition.planner.make_plan`.
    """

    group: str
    shape: ModelShape
    devices: tuple[Device, ...]
    method: str
    split: bool
    cache: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    @functools.lru_cache(maxsize=16)
    def from_json(cls, text: str) -> Settings:
        values: dict[str, Any] = json.loads(text)
        vision = values["shape"].pop("vision")
        shape = ModelShape(**values["shape"], vision=VisionShape(**vision) if vision else None)
        devices = tuple(Device(**device) for device in values["devices"])
        return cls(**{**values, "shape": shape, "devices": devices})


@dataclass
class Session:
    """One group's ranks, and what is known of its last prefill.

    Attributes:
        ranks: of the group.
        schedule, plan: of the last prefill.
        spread: whether its features were spread over the ranks. encoder_K: then, which rank encoded each kept token.
        pending: whether features were spread for a prefill that has not begun.
        decodes: whether a call is running that goes on from a cache which is spread over the ranks.
    """

    ranks: Ranks
    schedule: RankSchedule | None = None
    plan: Plan | None = None
    spread: bool = False
    encoder_K: Tensor | None = None
    pending: bool = False
    decodes: bool = False

    def decoding(self, cached: int, new: int) -> RankSchedule:
        """The schedule of the prefill that a cache came from.

        Raises:
            PromptError: the cache does not belong to the last prefill of this group.
        """
        schedule = self.schedule
        if schedule is None or cached < schedule.length + new:
            made = "none" if schedule is None else f"{schedule.length} tokens on this rank"
            raise PromptError(
                f"a cache with {cached - new} tokens is not that of the prefill it is decoded by ({made}); hand in "
                'the cache that the prefill gave back, or compile with cache="gather"'
            )
        return schedule


@functools.lru_cache(maxsize=8)
def _session(group: ProcessGroup) -> Session:
    return Session(Ranks(group))


def session_of(group: str) -> Session:
    """The session of a process group, by the group's name; a group that was made anew has a new one."""
    return _session(group_of(group))


def check_dealt(inputs: Mapping[str, Any], asked: str | None) -> None:
    """After a call of the model: were features that are spread over the ranks dealt out by ``shard-segments``?

    Args:
        inputs: of the call.
        asked: the option ``ranks``. Without it nothing deals out features that are spread over the default group.

    Raises:
        PromptError: the pass did not apply, so the model has read NaN in place of other ranks' features.
    """
    if not inputs.get("mm_encoder_outputs"):
        return
    ranks = Ranks.asked(asked or "all")
    if ranks.group is None:
        return
    session = session_of(ranks.group.group_name)
    if session.pending:
        session.pending = False
        raise PromptError(
            "the video's features are spread over the ranks, and shard-segments did not apply to this prefill; "
            'segmo.last_report() says why. Compile with ranks="all", or call encode_video without spread=True'
        )


def last_plan(asked: str | None) -> Plan | None:
    """The plan of the last prefill of the option ``ranks``; None without a group or a plan."""
    ranks = Ranks.asked(asked)
    return None if ranks.group is None else session_of(ranks.group.group_name).plan


def last_schedule(asked: str | None) -> RankSchedule | None:
    """The schedule of the last prefill of the option ``ranks``; None without a group or a prefill."""
    ranks = Ranks.asked(asked)
    return None if ranks.group is None else session_of(ranks.group.group_name).schedule


@contextmanager
def going_on(cache: Any, asked: str | None, spread: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, a cache that is spread over the ranks is decoded by the schedule of its own prefill.

    Args:
        cache: of the call; nothing is done for one that is whole.
        asked: the option ``ranks``.
        spread: whether the model that is called attends to spread caches. Otherwise they refuse the call.
    """
    layers = [layer for layer in getattr(cache, "layers", ()) if hasattr(layer, "together")]  # of runtime.cache
    group = Ranks.asked(asked).group if layers else None
    if group is None or not spread():
        yield
        return
    session = session_of(group.group_name)
    session.schedule, session.decodes = layers[0].schedule, True
    for layer in layers:
        layer.together = True
    try:
        yield
    finally:
        session.decodes = False
        for layer in layers:
            layer.together = False


@contextmanager
def memory_explained(asked: str | None) -> Iterator[None]:
    """Turns running out of memory on a rank into an error that says what the plan had predicted for it.

    Args:
        asked: the option ``ranks``.

    Raises:
        RankError: memory ran out while the group's last prefill had a plan; otherwise the error as it was.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        ranks = Ranks.asked(asked)
        session = session_of(ranks.group.group_name) if ranks.group is not None else None
        if session is None or session.plan is None:
            raise
        memory, device = session.plan.memory[ranks.rank], session.plan.devices[ranks.rank]
        raise RankError(
            f"rank {ranks.rank} of {ranks.world} ran out of memory: the plan had predicted "
            f"{memory.total / GIB:.2f} GiB ({memory.describe()}) of the {device.memory_bytes / GIB:.2f} GiB of "
            f"{device.name}; use more ranks, keep fewer tokens, or run `segmo calibrate` where less memory is free"
        ) from error


_WORDS: ContextVar[Tensor | None] = ContextVar("segmo_words", default=None)


@contextmanager
def words_known(ids: Tensor | None) -> Iterator[None]:
    """Inside the block, a prefill over ranks compares these token ids too: no graph has to hold them."""
    token = _WORDS.set(ids)
    try:
        yield
    finally:
        _WORDS.reset(token)


def current_words() -> Tensor | None:
    """Token ids of the running call, where they are known."""
    return _WORDS.get()


def fingerprint(*tensors: Tensor | None) -> Tensor:
    """A number that differs when any of the integer tensors does, (1,) int64 on the CPU."""
    import hashlib

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(b"none" if tensor is None else tensor.detach().cpu().contiguous().numpy().tobytes())
    return Tensor([0]).long() + int.from_bytes(digest.digest()[:7], "big")
