"""Segment attention over ranks: two exchanges per layer, hidden behind the attention inside own segments.

Legend: A query heads, G key/value heads, R = A / G, L tokens of this rank, E tokens that it gives to others, X tokens
that its pieces see, sinks and themselves aside, Q question tokens, D head size, W ranks.

Per layer: (1) keys and values that other ranks' pieces see start to travel; (2) the question attends to this rank's
keys, and that part starts to travel; (3) own pieces attend inside themselves; (4) they attend to sinks and
these tokens, merged by logsumexp; (5) the question's parts are merged by logsumexp, on all ranks in the
same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segmo.runtime.attention.partial import partial_attention
from segmo.runtime.distributed.kernels import PartKernels
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.schedule import RankSchedule
from segmo.runtime.partition.exchange import parts_are_gathered


@dataclass(frozen=True)
class RankLayer:
    """One layer on one of the ranks that compute it together.

    Attributes:
        schedule: from :func:`segmo.runtime.distributed.schedule.rank_schedule`; its tokens are laid out as
            (sinks | own | question).
        ranks: that compute the layer, each with a schedule of its own.
        number: of the layer; names the step if an exchange fails.
        kernels: what attends to one new token, and merges the parts.
    """

    schedule: RankSchedule
    ranks: Ranks
    number: int = 0
    kernels: PartKernels = field(default_factory=PartKernels)


def _grouped(x_ALD: Tensor, groups: int) -> Tensor:
    """A view in which the query heads that share a key/value head stand together, (G, R, L, D)."""
    return x_ALD.view(groups, x_ALD.shape[0] // groups, *x_ALD.shape[1:])


def _start_shared(k_GLD: Tensor, v_GLD: Tensor, at: RankLayer) -> Callable[[], tuple[Tensor, Tensor]]:
    """Starts the exchange; the returned function gives keys and values (G, sinks+X, D), sinks first."""
    schedule = at.schedule
    exchange, waits = schedule.needs.exchange, []
    if exchange.total:
        start = _start_broadcasts if exchange.by_broadcast else _start_straight
        waits.append(start(_rows(k_GLD, v_GLD, schedule.sent_rows), at, f"layer {at.number}: context"))

    def finish() -> tuple[Tensor, Tensor]:
        arrived = [wait() for wait in waits]
        if not schedule.seen:
            return k_GLD[:, : schedule.sinks], v_GLD[:, : schedule.sinks]
        both_2GXD = torch.cat([_rows(k_GLD, v_GLD, schedule.kept_rows), *arrived], dim=2)
        k, v = both_2GXD[:, :, list(schedule.shared_order)]
        return k, v

    return finish


def _rows(k_GLD: Tensor, v_GLD: Tensor, rows: Sequence[int]) -> Tensor:
    """Keys and values of some rows, (2, G, E, D)."""
    return torch.stack([k_GLD[:, list(rows)], v_GLD[:, list(rows)]])


def _start_straight(mine_2GED: Tensor, at: RankLayer, step: str) -> Callable[[], Tensor]:
    """Tokens go to the ranks that need them, and nowhere else."""
    rows_E2GD = mine_2GED.permute(2, 0, 1, 3)
    wait = at.ranks.start_exchange(rows_E2GD, at.schedule.needs.counts, step)
    return lambda: wait().permute(1, 2, 0, 3)


def _start_broadcasts(mine_2GED: Tensor, at: RankLayer, step: str) -> Callable[[], Tensor]:
    """Each rank that has something to give sends it to all; the function gives these side by side."""
    waits = []
    for source, count in enumerate(at.schedule.needs.exchange.counts):
        if count:
            shape = (*mine_2GED.shape[:2], count, mine_2GED.shape[3])
            value = mine_2GED if source == at.schedule.rank else mine_2GED.new_empty(shape)
            waits.append(at.ranks.start_share(value, source, step))
    return lambda: torch.cat([wait() for wait in waits], dim=2)


def _question_part(q_GRLD: Tensor, k_GLD: Tensor, v_GLD: Tensor, scale: float, at: RankLayer) -> tuple[Tensor, Tensor]:
    """This rank's part of the question's attention: output (G, R, Q, D) and fp32 logsumexp (G, R, Q)."""
    schedule = at.schedule
    first = schedule.sinks + schedule.own
    q_GRQD = q_GRLD[:, :, first:]
    keys = slice(0, first) if schedule.is_home else slice(schedule.sinks, first)
    out, lse = partial_attention(q_GRQD, k_GLD[:, keys], v_GLD[:, keys], scale, causal=False)
    if schedule.is_home:
        own = partial_attention(q_GRQD, k_GLD[:, first:], v_GLD[:, first:], scale, causal=True)
        out, lse = at.kernels.merge(torch.stack([out, own[0]]), torch.stack([lse, own[1]]), torch.float32)
    return out, lse


def _start_merge(
    out_GRQD: Tensor, lse_GRQ: Tensor, dtype: torch.dtype, at: RankLayer, step: str
) -> Callable[[], Tensor]:
    """Starts to merge the ranks' parts of the question; the function gives (G, R, Q, D), equal on all.

    A gathered part travels in the model's dtype, to which it would be rounded anyway, its logsumexp in fp32.
    """
    ranks = at.ranks
    if parts_are_gathered(ranks.world):
        packed = torch.cat([out_GRQD.to(dtype), lse_GRQ[..., None].view(dtype)], dim=-1)
        wait = ranks.start_gather(packed, step)
        size = out_GRQD.shape[-1]

        def merged() -> Tensor:
            parts = wait()
            lse = parts[..., size:].contiguous().view(torch.float32)[..., 0]
            return at.kernels.merge(parts[..., :size], lse, dtype)[0]

        return merged

    largest = ranks.start_reduce(lse_GRQ, "max", step)

    def reduced() -> Tensor:
        top = largest()
        weight = (lse_GRQ - top.masked_fill(top == -torch.inf, 0)).exp()[..., None]
        weighed = torch.cat([out_GRQD.float() * weight, weight], dim=-1)
        total = ranks.start_reduce(weighed, "sum", step)()
        sums, weights = total[..., :-1], total[..., -1:]
        return (sums / weights.clamp(min=torch.finfo(torch.float32).tiny)).to(dtype)

    return reduced


def rank_attention(q_ALD: Tensor, k_GLD: Tensor, v_GLD: Tensor, scale: float, at: RankLayer) -> Tensor:
    """Segment attention of this rank's tokens, (A, L, D). All ranks must call it together.

    Equals :func:`segmo.runtime.attention.reference.segment_attention` of the whole prompt at this rank's
    positions, to rounding; the question's rows are the same on every rank, bit for bit, if their queries are.

    Args:
        q_ALD, k_GLD, v_GLD: of this rank's tokens.
        scale: of the logits.
        at: the layer on this rank.

    Raises:
        RankError: another rank died, hung or disagrees.
    """
    schedule = at.schedule
    groups = k_GLD.shape[0]
    q_GRLD = _grouped(q_ALD, groups)
    # (L, A, D) in memory: the model transposes to that next, and then has nothing to copy.
    out_ALD = q_ALD.new_empty(q_ALD.shape[1], q_ALD.shape[0], v_GLD.shape[2]).transpose(0, 1)
    out_GRLD = _grouped(out_ALD, groups)

    wait_shared = _start_shared(k_GLD, v_GLD, at)
    wait_question = None
    if schedule.query:
        part = _question_part(q_GRLD, k_GLD, v_GLD, scale, at)
        wait_question = _start_merge(*part, q_ALD.dtype, at, f"layer {at.number}: question")

    sinks = slice(0, schedule.sinks)
    out_GRLD[:, :, sinks] = partial_attention(
        q_GRLD[:, :, sinks], k_GLD[:, sinks], v_GLD[:, sinks], scale, causal=True
    )[0]
    inside = []
    for block in schedule.blocks:
        rows = slice(block.start, block.end)
        inside.append(partial_attention(q_GRLD[:, :, rows], k_GLD[:, rows], v_GLD[:, rows], scale, causal=True))
    shared_k, shared_v = wait_shared()
    for block, (out, lse) in zip(schedule.blocks, inside, strict=True):
        rows = slice(block.start, block.end)
        keys = _seen(shared_k, block.visible, block.visible_prefix, schedule.sinks)
        values = _seen(shared_v, block.visible, block.visible_prefix, schedule.sinks)
        if keys.shape[1]:
            seen = partial_attention(q_GRLD[:, :, rows], keys, values, scale, causal=False)
            out = at.kernels.merge_two(out, lse, *seen)
        out_GRLD[:, :, rows] = out
    if wait_question is not None:
        out_GRLD[:, :, schedule.sinks + schedule.own :] = wait_question()
    return out_ALD


def _seen(shared_GXD: Tensor, visible: tuple[int, ...], prefix: int | None, sinks: int) -> Tensor:
    """Sinks and the shared tokens that a block sees: a view where these come first, otherwise a copy."""
    if prefix is not None:
        return shared_GXD[:, : sinks + prefix]
    return shared_GXD[:, [*range(sinks), *(sinks + index for index in visible)]]


def rank_decode_attention(q_ATD: Tensor, k_GND: Tensor, v_GND: Tensor, scale: float, at: RankLayer) -> Tensor:
    """Attention of new tokens over a cache that stays where prefill left it, (A, T, D); all ranks call it.

    The rank's cache is (sinks | own | question | new tokens). Sinks, question and new tokens are the same on
    every rank; the home rank alone, which is the least loaded one, attends to them.

    Args:
        q_ATD: queries of the T newest tokens, which are the last T of the cache; T > 1 is causal.
        k_GND, v_GND: the rank's cache with the new tokens, N = L + new.
        scale: of the logits.
        at: the layer on this rank.
    """
    schedule, step = at.schedule, f"decode, layer {at.number}"
    if q_ATD.shape[1] == 1:
        return _newest_attention(q_ATD, k_GND, v_GND, scale, at, step)
    q_GRTD = _grouped(q_ATD, k_GND.shape[0])
    last = k_GND.shape[1] - q_ATD.shape[1]
    before = slice(0, last) if schedule.is_home else _own(schedule)
    out, lse = partial_attention(q_GRTD, k_GND[:, before], v_GND[:, before], scale, causal=False)
    if schedule.is_home:
        newest = partial_attention(q_GRTD, k_GND[:, last:], v_GND[:, last:], scale, causal=True)
        out, lse = at.kernels.merge(torch.stack([out, newest[0]]), torch.stack([lse, newest[1]]), torch.float32)
    return _start_merge(out, lse, q_ATD.dtype, at, step)().flatten(0, 1)


def rank_last_attention(q_A1D: Tensor, k_GLD: Tensor, v_GLD: Tensor, scale: float, at: RankLayer) -> Tensor:
    """The last row of :func:`rank_attention`, (A, 1, D), where no other row is needed; all ranks must call it together.

    That row is the question's, which sees everything: no context travels, and one row of the question's part.

    Args:
        q_A1D: the query of the prompt's last token.
        k_GLD, v_GLD: of this rank's tokens.
        scale: of the logits.
        at: the layer on this rank.

    Raises:
        RankError: another rank died, hung or disagrees.
    """
    return _newest_attention(q_A1D, k_GLD, v_GLD, scale, at, f"layer {at.number}: question")


def _own(schedule: RankSchedule) -> slice:
    return slice(schedule.sinks, schedule.sinks + schedule.own)


def _newest_attention(q_A1D: Tensor, k_GND: Tensor, v_GND: Tensor, scale: float, at: RankLayer, step: str) -> Tensor:
    """Attention of the last token to all there are: each rank to its own, the home rank to what all ranks have too."""
    seen = slice(None) if at.schedule.is_home else _own(at.schedule)
    part = at.kernels.decode(_grouped(q_A1D, k_GND.shape[0]), k_GND[:, seen], v_GND[:, seen], scale)
    return _start_merge(*part, q_A1D.dtype, at, step)().flatten(0, 1)


def gather_cache(x_GLD: Tensor, schedule: RankSchedule, ranks: Ranks, step: str) -> Tensor:
    """Keys or values of all tokens of the prompt, (G, K, D), the same on every rank bit for bit.

    Sinks and question come from the home rank, because replicas may differ by rounding.
    """
    if schedule.world == 1:
        return x_GLD
    sinks, own = schedule.sinks, schedule.own
    longest = max(len(schedule.own_of(rank)) for rank in range(schedule.world))
    edge = sinks + schedule.query
    mine = x_GLD.new_zeros(x_GLD.shape[0], longest + edge, x_GLD.shape[2])
    mine[:, :own] = x_GLD[:, sinks : sinks + own]
    mine[:, longest : longest + sinks] = x_GLD[:, :sinks]
    mine[:, longest + sinks :] = x_GLD[:, sinks + own :]
    all_WGMD = ranks.gather(mine, step)
    whole = x_GLD.new_empty(x_GLD.shape[0], schedule.row.end, x_GLD.shape[2])
    for rank in range(schedule.world):
        at = 0
        for start, end in schedule.spans[rank]:
            whole[:, start:end] = all_WGMD[rank, :, at : at + end - start]
            at += end - start
    home = all_WGMD[schedule.home]
    whole[:, :sinks] = home[:, longest : longest + sinks]
    whole[:, schedule.row.query_start :] = home[:, longest + sinks :]
    return whole
