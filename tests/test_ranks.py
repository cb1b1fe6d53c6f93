"""Failures: a rank that dies or hangs ends the job on all ranks, with its name and step."""

from __future__ import annotations

import re

import pytest
import torch
from crew import Crew, CrewError
from rank_cases import fail_at
from test_rank_attention import spread

from segmo.errors import RankError
from segmo.runtime.distributed.ranks import Ranks


@pytest.mark.slow
@pytest.mark.parametrize(("how", "world", "culprit"), [("die", 3, 1), ("hang", 3, 2), ("die", 2, 0)])
def test_survivors_name_the_rank_and_the_step(how, world, culprit):
    # What is tested is this wait, so it is short; four layers fit in even on a busy machine.
    crew = Crew(world, timeout_seconds=30)
    try:
        crew.run_with_hangs(fail_at, spread(world), culprit, 4, how, patience=300)
    except CrewError as failure:
        errors = failure.errors
    finally:
        crew.close()
    survivors = [rank for rank in range(world) if rank != culprit]
    for rank in survivors:
        assert isinstance(errors[rank], RankError)
        # All of the context lies on rank 0: who only receives it may notice at the next exchange of the layer.
        assert re.search(rf"rank {rank} of {world} failed at step 'layer 4: (context|question)'", str(errors[rank]))
        assert f"rank {culprit} never reached it, its last step was 'layer 3: question'" in str(errors[rank])


def test_alone_nothing_is_sent():
    ranks = Ranks.of()
    value = torch.arange(6.0).view(2, 3)
    assert torch.equal(ranks.gather(value, "x"), value[None])
    assert torch.equal(ranks.share(value, 0, "x"), value)
    assert (ranks.rank, ranks.world, ranks.traffic.bytes_received) == (0, 1, 0)
