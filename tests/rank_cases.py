"""What a rank does in tests of the distributed runtime; functions here run in a crew's processes.

Legend: A query heads, G key/value heads, K prompt tokens, L tokens of a rank, D head size, T new tokens.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segmo.runtime.cost.device import DEVICES
from segmo.runtime.cost.shape import PRESETS
from segmo.runtime.distributed.attention import (
    RankLayer,
    gather_cache,
    rank_attention,
    rank_decode_attention,
    rank_last_attention,
)
from segmo.runtime.distributed.kernels import PartKernels, rank_kernels
from segmo.runtime.distributed.ops import plan_ranks
from segmo.runtime.distributed.preflight import exchange_facts
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.schedule import RankSchedule, pack_rank, unpack_rank
from segmo.runtime.distributed.session import Settings, memory_explained, session_of
from segmo.runtime.schedule import RowSchedule, pack


@dataclass(frozen=True)
class Case:
    """A prompt, who owns what of it, and the shape of one layer's attention."""

    row: RowSchedule
    spans: tuple[tuple[tuple[int, int], ...], ...]
    home: int
    heads: int
    groups: int
    size: int
    dtype: torch.dtype
    seed: int

    @property
    def scale(self) -> float:
        return self.size**-0.5

    def whole(self, new: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the whole prompt (and of new tokens), the same in every process."""
        random_ = torch.Generator().manual_seed(self.seed)

        def draw(heads: int) -> Tensor:
            return torch.randn(heads, self.row.end + new, self.size, generator=random_).to(self.dtype)

        return draw(self.heads), draw(self.groups), draw(self.groups)

    def schedule(self, rank: int) -> RankSchedule:
        return unpack_rank(pack_rank(RankSchedule(self.row, self.spans, rank, self.home)))


def attend(
    rank: int, world: int, case: Case, group_ranks: int, generated: bool = False
) -> tuple[Tensor, Tensor, Tensor, int] | None:
    """Output of a rank's rows, their positions, and the gathered keys; None on ranks outside the group."""
    schedule = case.schedule(rank) if rank < group_ranks else None
    if schedule is None:
        return None
    ranks = Ranks.of() if group_ranks == world else Ranks(None)
    positions = schedule.positions()
    q, k, v = (x[:, positions] for x in case.whole())
    out = rank_attention(q, k, v, case.scale, RankLayer(schedule, ranks, kernels=PartKernels(generated)))
    keys = gather_cache(k, schedule, ranks, "cache")
    return out, positions, keys, ranks.traffic.bytes_received


def attend_last(rank: int, world: int, case: Case) -> tuple[Tensor, int]:
    """Output of the prompt's last row, and the bytes received for it."""
    schedule, ranks = case.schedule(rank), Ranks.of()
    q, k, v = (x[:, schedule.positions()] for x in case.whole())
    out = rank_last_attention(q[:, -1:], k, v, case.scale, RankLayer(schedule, ranks))
    return out, ranks.traffic.bytes_received


def decode(rank: int, world: int, case: Case, new: int, generated: bool = False) -> Tensor:
    """Attention of the newest tokens over caches that stayed where they were."""
    schedule = case.schedule(rank)
    q, k, v = case.whole(new)
    rows = torch.cat([schedule.positions(), torch.arange(case.row.end, case.row.end + new)])
    at = RankLayer(schedule, Ranks.of(), kernels=PartKernels(generated))
    return rank_decode_attention(q[:, -new:], k[:, rows], v[:, rows], case.scale, at)


def check_ops(rank: int, world: int, case: Case) -> dict[str, str]:
    """``torch.library.opcheck`` of the operators over ranks, on generated kernels."""
    ranks = Ranks.of()
    assert ranks.group is not None
    group, schedule = ranks.group.group_name, case.schedule(rank)
    q, k, v = (x[None, :, schedule.positions()] for x in case.whole())
    name = rank_kernels(q.device, q.dtype, case.size, case.heads, case.groups)
    session_of(group).schedule = schedule
    ops: Any = torch.ops.segmo
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    whole = (q, k, v, pack_rank(schedule), case.scale, group, 0, name)
    found = torch.library.opcheck(ops.rank_attention.default, whole, test_utils=tests)
    one = (q[:, :, -1:], *(torch.cat([x, x[:, :, -1:]], 2) for x in (k, v)), case.scale, group, 0, name)
    decoded = torch.library.opcheck(ops.rank_decode_attention.default, one, test_utils=tests)
    return {**found, **{f"decode {test}": result for test, result in decoded.items()}}


def attend_with_delays(rank: int, world: int, case: Case, runs: int, seed: int) -> Tensor:
    """Many layers in a row with a random pause before each; the sum of the outputs' question rows."""
    schedule, ranks = case.schedule(rank), Ranks.of()
    q, k, v = (x[:, schedule.positions()] for x in case.whole())
    pause = random.Random(f"{seed}/{rank}")
    total = torch.zeros(case.heads, schedule.query, case.size)
    for layer in range(runs):
        time.sleep(pause.random() * 0.003)
        total += rank_attention(q, k, v, case.scale, RankLayer(schedule, ranks, layer))[:, -schedule.query :]
    return total


def fail_at(rank: int, world: int, case: Case, culprit: int, layer: int, how: str) -> None:
    """All ranks attend; one of them dies, hangs or raises before a layer."""
    schedule, ranks = case.schedule(rank), Ranks.of()
    q, k, v = (x[:, schedule.positions()] for x in case.whole())
    for at in range(layer + 3):
        if rank == culprit and at == layer:
            if how == "die":
                import os

                os._exit(17)
            time.sleep(600)
        rank_attention(q, k, v, case.scale, RankLayer(schedule, ranks, at))
    dist.barrier()


def agree(rank: int, world: int, name: str, facts: list[dict[str, str]], silent: int) -> list[dict[str, int]] | None:
    """Each rank checks its own facts and hands over its number; rank ``silent``, if any, stays away."""
    if rank == silent:
        return None
    wait = timedelta(seconds=1 if silent >= 0 else 300)  # short only where someone is missed
    return exchange_facts(facts[rank], {"number": rank}, Ranks.of(), name, wait)


def _plan(row: RowSchedule, settings: Settings) -> None:
    """Plans a prefill whose features every rank holds, so that no frame's place is asked for."""
    nowhere = torch.full((1, row.end), -1)
    plan_ranks(pack([row]), None, nowhere, nowhere, settings.to_json())


def run_out_of_memory(rank: int, world: int) -> None:
    """Plans a prefill, then asks for more memory than there is."""
    ranks = Ranks.of()
    assert ranks.group is not None
    row = RowSchedule(0, 4, (40, 90), 96, ())
    settings = Settings(
        ranks.group.group_name, PRESETS["qwen2-0.5b"], (DEVICES["h100"],) * world, "balanced", True, "gather"
    )
    _plan(row, settings)
    with memory_explained("all"):
        torch.empty(2**60, dtype=torch.uint8)


def hold_other_prompts(rank: int, world: int) -> None:
    """Each rank plans another prompt."""
    ranks = Ranks.of()
    assert ranks.group is not None
    settings = Settings(
        ranks.group.group_name, PRESETS["qwen2-0.5b"], (DEVICES["h100"],) * world, "balanced", True, "gather"
    )
    row = RowSchedule(0, 4, (40, 90 + rank), 96, ())
    _plan(row, settings)
