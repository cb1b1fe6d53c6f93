"""A process group by its name, as torch's functional collectives name it, and the store that all ranks share."""

from __future__ import annotations

from typing import Any

import torch.distributed.distributed_c10d as c10d
from torch._C._distributed_c10d import FileStore, PrefixStore, ProcessGroup, Store, _resolve_process_group

__all__ = ["FileStore", "ProcessGroup", "Store", "default_store", "fits", "group_of"]

WHAT = "torch.distributed's _resolve_process_group and _get_default_store"
VERSIONS = "torch 2.11 to 2.15; a name has a type of its own from 2.10 on, and is a str before"


def group_of(name: str) -> ProcessGroup:
    """The group that was registered under a name.

    Raises:
        RuntimeError: there is none.
    """
    typed: Any = getattr(c10d, "GroupName", str)
    return _resolve_process_group(typed(name))


def default_store(prefix: str) -> Store:
    """The store of the default process group, under a prefix of one's own.

    Raises:
        ValueError: there is no process group.
    """
    return PrefixStore(prefix, c10d._get_default_store())


def fits() -> str | None:
    """A name that is not registered has to be refused, and not to end in a crash."""
    try:
        group_of("segmo: no such group")
    except RuntimeError:
        return None
    return "an unknown process group was resolved"
