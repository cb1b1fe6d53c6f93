"""The ways of the distributed benchmark: each prefills one prompt on the ranks of a group.

Legend: A query heads, G key/value heads, R = A / G, L tokens of a rank, N tokens, D head size, W ranks.

Only the last two are SegMo's. The rivals are written here from their papers: ring attention (Liu et al.,
2023) with the zigzag order that balances causal work, all-gather of keys and values (as in Llama 3's context
parallelism), and Ulysses (Jacobs et al., 2023), which exchanges heads for tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from rank_model import QUESTION, SHAPE, Attention, Decoder, Prompt, select
from torch import Tensor

from segmo.runtime.attention.flash import merge
from segmo.runtime.attention.partial import partial_attention
from segmo.runtime.cost.device import Device
from segmo.runtime.distributed.attention import RankLayer, rank_attention
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.schedule import rank_schedule
from segmo.runtime.partition.plan import Plan
from segmo.runtime.partition.planner import make_plan
from segmo.runtime.partition.workload import Workload
from segmo.runtime.schedule import RowSchedule


def _grouped(q_ALD: Tensor, k_GLD: Tensor) -> Tensor:
    return q_ALD.unflatten(0, (k_GLD.shape[0], -1))


def full(q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
    """Causal attention of all tokens in one process."""
    return partial_attention(_grouped(q, k), k, v, scale, causal=True)[0].flatten(0, 1)


def zigzag_positions(length: int, rank: int, world: int) -> Tensor:
    """Positions of chunks ``rank`` and ``2 W - 1 - rank`` of 2 W equal chunks."""
    edges = [length * i // (2 * world) for i in range(2 * world + 1)]
    return torch.cat([torch.arange(edges[c], edges[c + 1]) for c in (rank, 2 * world - 1 - rank)])


def gathered_attention(length: int, ranks: Ranks) -> Attention:
    """Every rank gathers all keys and values and attends from its zigzag chunks."""
    rank, world = ranks.rank, ranks.world
    order = torch.cat([zigzag_positions(length, r, world) for r in range(world)])
    inverse = torch.argsort(order)
    sizes = [len(zigzag_positions(length, r, world)) for r in range(world)]
    place = torch.cat([torch.arange(n) + r * max(sizes) for r, n in enumerate(sizes)])[inverse]
    edges = [length * i // (2 * world) for i in range(2 * world + 1)]

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
        padding = (0, 0, 0, max(sizes) - k.shape[1])
        both = torch.nn.functional.pad(torch.stack([k, v]), padding)
        gathered = ranks.gather(both, f"layer {layer}: keys and values")
        keys, values = gathered.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, place]
        outs, at = [], 0
        for chunk in (rank, 2 * world - 1 - rank):
            start, end = edges[chunk], edges[chunk + 1]
            rows = _grouped(q, k)[:, :, at : at + end - start]
            out, lse = partial_attention(rows, keys[:, start:end], values[:, start:end], scale, causal=True)
            if start:
                before = partial_attention(rows, keys[:, :start], values[:, :start], scale, causal=False)
                out = merge(out, lse, *before)
            outs.append(out)
            at += end - start
        return torch.cat(outs, dim=2).flatten(0, 1)

    return attend


def ring_attention(length: int, ranks: Ranks) -> Attention:
    """Keys and values go round; while one block is attended to, the next one travels."""
    rank, world = ranks.rank, ranks.world
    edges = [length * i // (2 * world) for i in range(2 * world + 1)]

    def chunks(owner: int) -> list[tuple[int, slice]]:
        first, second = owner, 2 * world - 1 - owner
        middle = edges[first + 1] - edges[first]
        return [
            (first, slice(0, middle)),
            (second, slice(middle, middle + edges[second + 1] - edges[second])),
        ]

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
        q_GRLD, block = _grouped(q, k), torch.stack([k, v])
        parts: dict[int, tuple[Tensor, Tensor]] = {}
        for step in range(world):
            owner = (rank - step) % world
            requests, arriving = [], None
            if step + 1 < world:
                sender = (rank - step - 1) % world
                size = sum(c.stop - c.start for _, c in chunks(sender))
                arriving = block.new_empty(2, k.shape[0], size, k.shape[2])
                requests = dist.batch_isend_irecv(
                    [
                        dist.P2POp(dist.isend, block.contiguous(), (rank + 1) % world),
                        dist.P2POp(dist.irecv, arriving, (rank - 1) % world),
                    ]
                )
                ranks.traffic.bytes_received += arriving.numel() * arriving.element_size()
            for mine, rows in chunks(rank):
                for theirs, keys in chunks(owner):
                    if theirs > mine:
                        continue
                    part = partial_attention(
                        q_GRLD[:, :, rows], block[0][:, keys], block[1][:, keys], scale, causal=theirs == mine
                    )
                    parts[mine] = _joined(parts.get(mine), part)
            for request in requests:
                request.wait()
            if arriving is not None:
                block = arriving
        return torch.cat([parts[mine][0] for mine, _ in chunks(rank)], dim=2).to(q.dtype).flatten(0, 1)

    return attend


def _joined(one: tuple[Tensor, Tensor] | None, two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if one is None:
        return two[0].float(), two[1]
    return merge(one[0], one[1], *two), torch.logaddexp(one[1], two[1])


def ulysses_attention(length: int, ranks: Ranks) -> Attention:
    """Two all-to-alls per layer: tokens for heads, then heads for tokens. Contiguous, equal parts of the prompt."""
    world = ranks.world
    edges = [length * i // world for i in range(world + 1)]
    sizes = [end - start for start, end in itertools.pairwise(edges)]

    def to_heads(x_HLD: Tensor) -> Tensor:
        """(H, L, D) of all heads and own tokens to (H / W, N, D) of own heads and all tokens."""
        heads, own, size = x_HLD.shape
        share = heads // world
        sent = x_HLD.contiguous().flatten()
        received = sent.new_empty(share * length * size)
        splits = [share * n * size for n in sizes]
        dist.all_to_all_single(received, sent, splits, [share * own * size] * world)
        _count(ranks, received, splits)
        blocks = received.split(splits)
        return torch.cat([b.view(share, n, size) for b, n in zip(blocks, sizes, strict=True)], dim=1)

    def to_tokens(x_HND: Tensor) -> Tensor:
        share, _, size = x_HND.shape
        own = sizes[ranks.rank]
        sent = torch.cat([part.flatten() for part in x_HND.split(sizes, dim=1)])
        received = sent.new_empty(share * world * own * size)
        splits = [share * own * size] * world
        dist.all_to_all_single(received, sent, splits, [share * n * size for n in sizes])
        _count(ranks, received, splits)
        return received.view(share * world, own, size)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
        return to_tokens(full(to_heads(q), to_heads(k), to_heads(v), scale, layer))

    return attend


def _count(ranks: Ranks, received: Tensor, splits: list[int]) -> None:
    ranks.traffic.bytes_received += (sum(splits) - splits[ranks.rank]) * received.element_size()


@dataclass(frozen=True)
class Outcome:
    """What one rank knows after a prefill.

    Attributes:
        question: hidden states of its last rows, which are the question's where it has that.
        tokens: rows it computed. has_question: whether it holds the end of the prompt.
    """

    question: Tensor
    tokens: int
    has_question: bool = True


Way = Callable[[Decoder, Prompt, Ranks], Outcome]
QUESTION_ROWS = slice(-QUESTION, None)


def whole(decoder: Decoder, prompt: Prompt, ranks: Ranks) -> Outcome:
    """All tokens, full attention, this process alone."""
    length = len(prompt.frame_N)
    hidden = decoder(prompt.embeds_NH, torch.arange(length), full)
    return Outcome(hidden[QUESTION_ROWS], length)


def sequence_parallel(make: Callable[[int, Ranks], Attention], zigzag: bool) -> Way:
    """All tokens, full attention, the tokens spread over the ranks."""

    def run(decoder: Decoder, prompt: Prompt, ranks: Ranks) -> Outcome:
        length, rank, world = len(prompt.frame_N), ranks.rank, ranks.world
        if zigzag:
            positions = zigzag_positions(length, rank, world)
        else:
            positions = torch.arange(length * rank // world, length * (rank + 1) // world)
        hidden = decoder(prompt.embeds_NH[positions], positions, make(length, ranks))
        return Outcome(hidden[QUESTION_ROWS], len(positions), int(positions[-1]) == length - 1)

    return run


def segments(
    keep: float, count: str, context: tuple[int, int], method: str, devices: list[Device], split: bool = True
) -> Way:
    """SegMo: CAS at ``keep``, LSP in ``count`` segments, context as :func:`select` takes it, spread by a plan."""

    def run(decoder: Decoder, prompt: Prompt, ranks: Ranks) -> Outcome:
        index_K, row = select(prompt, keep, count, context, ranks)
        plan = make_plan(Workload.of_schedule(row), SHAPE, devices[: ranks.world], method, split, cache="sharded")
        return run_plan(decoder, prompt, ranks, plan, index_K, row)

    return run


def run_plan(decoder: Decoder, prompt: Prompt, ranks: Ranks, plan: Plan, index_K: Tensor, row: RowSchedule) -> Outcome:
    """Prefills the kept tokens as a plan says."""
    schedule = rank_schedule(plan, row, ranks.rank)
    positions = index_K[schedule.positions()]

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
        return rank_attention(q, k, v, scale, RankLayer(schedule, ranks, layer))

    hidden = decoder(prompt.embeds_NH[positions], positions, attend)
    return Outcome(hidden[QUESTION_ROWS], len(positions))
