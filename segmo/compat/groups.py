"""A process group by its name, as torch's functional collectives name it, how they gather, and the common store."""

from __future__ import annotations

from typing import Any

import torch.distributed._functional_collectives as collectives
import torch.distributed.distributed_c10d as c10d
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore, ProcessGroup, Store, _resolve_process_group

__all__ = ["FileStore", "ProcessGroup", "Store", "all_gather", "default_store", "fits", "group_of"]

WHAT = "torch.distributed's _resolve_process_group, _get_default_store and functional collectives"
# A name has a type of its own from torch 2.10 on; all_gather_single is all_gather_tensor in the older releases.
VERSIONS = "torch 2.11 to 2.15"


def group_of(name: str) -> ProcessGroup:
    """The group that was registered under a name.

    Raises:
        RuntimeError: there is none.
    """
    typed: Any = getattr(c10d, "GroupName", str)
    return _resolve_process_group(typed(name))


def all_gather(value: Tensor, group: ProcessGroup) -> Tensor:
    """Starts to gather a contiguous (1, ...) from each rank; (W, ...), to be waited for."""
    gather: Any = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
    return gather(value, 0, group)  # type: ignore[no-any-return]


def default_store(prefix: str) -> Store:
    """The store of the default process group, under a prefix of one's own.

    Raises:
        ValueError: there is no process group.
    """
    return PrefixStore(prefix, c10d._get_default_store())


def fits() -> str | None:
    """A name that is not registered has to be refused, and not to end in a crash; the collectives must be there."""
    names = ("broadcast", "all_reduce", "all_to_all_single", "wait_tensor")
    gathers = ("all_gather_single", "all_gather_tensor")
    missing = [name for name in names if not hasattr(collectives, name)]
    if missing or not any(hasattr(collectives, name) for name in gathers):
        return f"torch.distributed._functional_collectives has no {', '.join(missing or gathers)}"
    try:
        group_of("segmo: no such group")
    except RuntimeError:
        return None
    return "an unknown process group was resolved"
