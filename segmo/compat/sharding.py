"""FSDP2's modules: the hooks by which they gather their weights, what Dynamo knows them by, and their precision.

A program that shards a model has imported torch.distributed.fsdp; here nothing does, because that takes a while.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WHAT = "torch.distributed.fsdp.FSDPModule and its state's hooks"
VERSIONS = "torch 2.11 to 2.15"

_ROOM = "torch.distributed.fsdp"
_STATE = "torch.distributed.fsdp._fully_shard._fsdp_state"
_MANAGED = "_is_fsdp_managed_module"


def is_sharded(module: Any) -> bool:
    """Whether ``fully_shard`` was applied to the module itself."""
    kind = getattr(sys.modules.get(_ROOM), "FSDPModule", None)
    return kind is not None and isinstance(module, kind)


@contextmanager
def plain(modules: list[Any]) -> Iterator[None]:
    """Inside the block, modules gather nothing, and Dynamo takes them for modules like others."""
    kind = sys.modules[_STATE].FSDPState
    places = [hooks for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)]
    before = [dict(hooks) for hooks in places]
    for hooks in places:
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), kind)]:
            del hooks[key]
    managed = [part for module in modules for part in module.modules() if vars(part).get(_MANAGED)]
    for part in managed:
        vars(part)[_MANAGED] = False
    try:
        yield
    finally:
        for part in managed:
            vars(part)[_MANAGED] = True
        for hooks, was in zip(places, before, strict=True):
            hooks.clear()
            hooks.update(was)


def is_mixed(module: Any) -> bool:
    """Whether the module changes the dtype of what it is handed or gives back."""
    policy = module._get_fsdp_state()._mp_policy
    return policy.param_dtype is not None or policy.output_dtype is not None


def fits() -> str | None:
    """Where it was imported, the state has to have both methods that stand as hooks."""
    if _ROOM not in sys.modules:
        return None
    state = getattr(sys.modules.get(_STATE), "FSDPState", None)
    missing = [name for name in ("_pre_forward", "_post_forward") if not hasattr(state, name)]
    return f"FSDPState has no {', '.join(missing)}" if missing else None
