"""Before the first collective: do all ranks run the same program on the same model?

The facts travel through the process group's store, not through a collective, so that ranks which differ are
named instead of computing nonsense or waiting for each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from segmo.compat.groups import default_store
from segmo.errors import RankError
from segmo.runtime.distributed.ranks import ALONE, Ranks

# Values of each parameter that enter the fingerprint: enough to tell checkpoints apart, little enough to be
# quick.
_SAMPLES = 256


def weights_fingerprint(model: nn.Module) -> str:
    """Digest of names, shapes, dtypes and evenly spaced values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().reshape(-1)
        if flat.numel():
            index = torch.linspace(
                0, flat.numel() - 1, min(_SAMPLES, flat.numel()), device=flat.device, dtype=torch.float32
            ).long()
            digest.update(flat[index].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def exchange_facts(
    facts: Mapping[str, str], own: Mapping[str, Any], ranks: Ranks, name: str, timeout: timedelta
) -> list[dict[str, Any]]:
    """Compares facts between all ranks and hands over what each has of its own.

    Args:
        facts: what must be equal, such as ``{"torch": "2.14.1", "options": "...", "weights": "..."}``.
        own: what may differ, JSON-able.
        name: tells this exchange from others; each name is used once per process group.
        timeout: how long to wait for a rank.

    Returns:
        The ``own`` of every rank, in order of the ranks.

    Raises:
        RankError: a rank did not report in time, or facts differ; the message names rank, fact and both
            values.
    """
    if ranks.world == 1:
        return [dict(own)]
    store = default_store(f"segmo/facts/{name}")
    store.set(str(ranks.rank), json.dumps([dict(facts), dict(own)]))
    shared = []
    for rank in range(ranks.world):
        try:
            store.wait([str(rank)], timeout)
        except RuntimeError as error:
            raise RankError(
                f"rank {rank} of {ranks.world} did not report to the check {name!r} within "
                f"{timeout.total_seconds():g} s; is it running, and does it run the same program? {ALONE}"
            ) from error
        theirs, other = json.loads(store.get(str(rank)))
        for fact in sorted({*facts, *theirs}):
            if facts.get(fact) != theirs.get(fact):
                raise RankError(
                    f"ranks {ranks.rank} and {rank} differ in {fact}: {facts.get(fact)!r} against "
                    f"{theirs.get(fact)!r}; start all ranks with the same environment, options and checkpoint. "
                    f"{ALONE}"
                )
        shared.append(other)
    return shared
