"""CAS on features that are spread over ranks: each rank has those of the frames that it encoded, the others are NaN.

Legend: N prompt tokens, V video tokens, T tokens of some frames, K kept tokens, L tokens of this rank, F frames,
H hidden size, Q question tokens, R rows of features, W ranks.

What the budget over all of the video needs travels: a novelty per token, a similarity and the question's fit per
frame, at most four frames' features to a rank (the one before its own, the first of its first scene and of the two
scenes before), and one sum of features per rank. After selection a kept token's
features go from the rank that encoded it to the one whose segment it is in, if that is another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.schedule import RankSchedule
from segmo.runtime.distributed.vision import frame_share
from segmo.runtime.features import scan_tokens
from segmo.runtime.frame_fit import Whole, feature_sum, frame_fit
from segmo.runtime.host import Array, give, read
from segmo.runtime.layout import video_starts
from segmo.runtime.novelty import BACK, Compare, distance_to, novel_tokens
from segmo.runtime.scenes import head_frames

ScanTokens = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Spread:
    """One row's video and who encoded what of it.

    Attributes:
        video_V: positions of the video's tokens. frame_V, cell_V: frame and cell of each.
        frames: F. ranks: who shares the video.
    """

    video_V: Tensor
    frame_V: Tensor
    cell_V: Tensor
    frames: int
    ranks: Ranks

    @classmethod
    def of(cls, frame_N: Tensor, cell_N: Tensor, ranks: Ranks) -> Spread:
        video_V = (cell_N >= 0).nonzero()[:, 0]
        frame_V = frame_N[video_V]
        return cls(video_V, frame_V, cell_N[video_V], int(frame_V[-1]) + 1 if len(video_V) else 0, ranks)

    def share(self, rank: int) -> tuple[int, int]:
        """First frame that a rank encoded and the one after its last."""
        return frame_share(self.frames, rank, self.ranks.world)

    def tokens(self, start: int, end: int) -> slice:
        """Which of the video's tokens are in these frames."""
        edges = torch.tensor([start, end], device=self.frame_V.device)
        first, last = torch.searchsorted(self.frame_V, edges).tolist()
        return slice(first, last)

    def own(self) -> slice:
        """Which of the video's tokens this rank encoded."""
        return self.tokens(*self.share(self.ranks.rank))

    def gather_frames(self, value: Tensor, per_frame: int, step: str) -> Tensor:
        """Values of all frames, in order, from each rank's own: ``per_frame`` is 1 for frames and 0 for tokens."""
        sizes = []
        for rank in range(self.ranks.world):
            start, end = self.share(rank)
            part = self.tokens(start, end)
            sizes.append(end - start if per_frame else part.stop - part.start)
        padded = torch.nn.functional.pad(value, (0, max(sizes) - value.shape[-1]))
        everyone = self.ranks.gather(padded, step)
        return torch.cat([everyone[rank, ..., :size] for rank, size in enumerate(sizes)], dim=-1)


def is_spread(embeds_NH: Tensor, spread: Spread) -> bool:
    """Whether any rank lacks features of other ranks' frames; the same answer on all ranks."""
    own, ranks = spread.own(), spread.ranks
    others = [at for at in (0, len(spread.video_V) - 1) if not own.start <= at < own.stop]
    lacks = any(bool(embeds_NH[spread.video_V[at]].isnan().any()) for at in others)
    return bool(ranks.gather(torch.tensor([lacks], device=embeds_NH.device).long(), "features").any())


def scan_spread(
    embeds_NH: Tensor,
    frame_N: Tensor,
    cell_N: Tensor,
    spread: Spread,
    missing: bool,
    selects: bool = True,
    scan: ScanTokens = scan_tokens,
) -> tuple[Tensor, Tensor]:
    """:func:`segmo.runtime.features.scan_video` of one row, each rank doing the frames that it encoded.

    Args:
        missing: whether the frame before a rank's own ones must come from another rank.
        selects: whether tokens are selected by their novelty; otherwise it is 0.
        scan: :func:`segmo.runtime.features.scan_tokens` or its generated twin.

    Returns:
        ``novelty`` (N,) fp32 of the tokens that this rank encoded, 0 for others, and ``similarity`` (N,) fp32 of all
        tokens, the same on every rank.
    """
    start, end = spread.share(spread.ranks.rank)
    halo = max(start - 1, 0)
    tokens = spread.tokens(halo, end) if end > start else slice(0, 0)
    at_T, source = spread.video_V[tokens], embeds_NH
    if missing:
        before = [[share[0] - 1] for share in map(spread.share, range(spread.ranks.world))]
        lent = _lent_frames(embeds_NH, spread, before, "frame before")
        source = torch.cat([lent, embeds_NH[spread.video_V[spread.own()]]])
        at_T = torch.arange(source.shape[0], device=source.device)
    novelty_T = similarity_F = torch.zeros(0, device=embeds_NH.device, dtype=torch.float32)
    if end > start:
        first_F = video_starts(frame_N, cell_N)
        novelty_T, similarity_F = scan(source, at_T, spread.frame_V[tokens], spread.cell_V[tokens], first_F)
        own = spread.own()
        novelty_T, similarity_F = novelty_T[own.start - tokens.start :], similarity_F[start - halo :]
    novelty_N = torch.zeros(frame_N.shape, device=embeds_NH.device, dtype=torch.float32)
    similarity_N = torch.ones_like(novelty_N)
    if spread.frames:
        if selects:
            novelty_N[spread.video_V[spread.own()]] = novelty_T
        similarity_N[spread.video_V] = spread.gather_frames(similarity_F, 1, "similarity")[spread.frame_V]
    return novelty_N, similarity_N


def scene_novelty_spread(
    embeds_NH: Tensor,
    novelty_N: Tensor,
    frame_N: Tensor,
    cell_N: Tensor,
    scene_N: Tensor,
    spread: Spread,
    missing: bool,
    compare: Compare = distance_to,
) -> Tensor:
    """:func:`segmo.runtime.novelty.scene_novelty` of one row, each rank doing the frames that it encoded; (N,).

    Args:
        novelty_N: from :func:`scan_spread`.
        scene_N: scene of each token.
        missing: whether first frames of scenes that are looked at here must come from other ranks.
        compare: as for :func:`segmo.runtime.novelty.novel_tokens`.
    """
    wanted, me, own = _scenes_before(scene_N, spread), spread.ranks.rank, spread.own()
    parts = [*(spread.tokens(frame, frame + 1) for frame in wanted[me]), own]
    tokens_T = torch.cat([torch.arange(part.start, part.stop, device=scene_N.device) for part in parts])
    in_row_T, source = spread.video_V[tokens_T], embeds_NH
    at_T = in_row_T
    if missing:
        lent = _lent_frames(embeds_NH, spread, wanted, "first frames of scenes")
        source = torch.cat([lent, embeds_NH[spread.video_V[own]]])
        at_T = torch.arange(source.shape[0], device=source.device)
    mine = own.stop - own.start
    found_T = torch.zeros(0, device=embeds_NH.device, dtype=torch.float32)
    if mine:
        at, frame, cell, first = read(at_T, frame_N[in_row_T], cell_N[in_row_T], video_starts(frame_N, cell_N))
        novelty_T, scene_T = novelty_N[in_row_T], scene_N[in_row_T]
        found_T = novel_tokens(source, at, novelty_T, frame, cell, scene_T, first, compare)[-mine:]
    out_N = torch.zeros_like(novelty_N)
    if spread.frames:
        out_N[spread.video_V] = spread.gather_frames(found_T, 0, "novelty")
    return out_N


def _scenes_before(scene_N: Tensor, spread: Spread) -> list[list[int]]:
    """For each rank, first frames of scenes that novelty looks at and that earlier ranks encoded, ascending."""
    scene_V = scene_N[spread.video_V]
    heads = head_frames(spread.frame_V, scene_V).tolist() if spread.frames else []
    wanted: list[list[int]] = []
    for rank in range(spread.ranks.world):
        start, end = spread.share(rank)
        scene = int(scene_V[spread.tokens(start, end)][0]) if end > start else -1
        wanted.append([head for head in heads[max(scene - BACK, 0) : scene + 1] if head < start])
    return wanted


def _lent_frames(embeds_NH: Tensor, spread: Spread, wanted: list[list[int]], step: str) -> Tensor:
    """Features of frames before this rank's own ones, (T, H), from the ranks that encoded them.

    Args:
        wanted: for each rank frames, ascending; one that there is not, or not before its own, is not sent.
    """
    world, me = spread.ranks.world, spread.ranks.rank
    counts = [[0] * world for _ in range(world)]
    sent = []
    for rank, frames in enumerate(wanted):
        start, end = spread.share(rank)
        for frame in frames:
            if not 0 <= frame < start or end == start:
                continue
            owner = next(r for r in range(world) if spread.share(r)[0] <= frame < spread.share(r)[1])
            part = spread.tokens(frame, frame + 1)
            counts[owner][rank] += part.stop - part.start
            if owner == me:
                sent.append(embeds_NH[spread.video_V[part]])
    rows = torch.cat(sent) if sent else embeds_NH[:0]
    return spread.ranks.exchange(rows, counts, step)


def spread_fit(
    ranks: Ranks, question_QH: Tensor, embeds_NH: Tensor, video_V: Array, frame_V: Array, frames: int
) -> Tensor:
    """The fit of a row's frames, each rank doing those that it encoded; (Q, F) on every rank."""
    in_frame_V = give(frame_V, embeds_NH.device)
    spread = Spread(give(video_V, embeds_NH.device), in_frame_V, in_frame_V, frames, ranks)
    own = spread.own()
    start, end = spread.share(ranks.rank)
    common_H = ranks.gather(feature_sum(embeds_NH, video_V[own]), "mean feature").sum(0) / len(video_V)
    whole = Whole(len(video_V), common_H, lambda found: ranks.gather(found, "spread of the fit").sum(0))
    fit_QF = frame_fit(question_QH, embeds_NH, video_V[own], frame_V[own] - start, end - start, whole)
    return spread.gather_frames(fit_QF, 1, "fit of frames")


def encoder_of(frame_N: Tensor, cell_N: Tensor, ranks: Ranks) -> Tensor:
    """The rank that encoded each token of a row, (N,) int64; -1 for text, which every rank has."""
    spread = Spread.of(frame_N, cell_N, ranks)
    encoder_N = torch.full_like(frame_N, -1)
    for rank in range(ranks.world):
        encoder_N[spread.video_V[spread.tokens(*spread.share(rank))]] = rank
    return encoder_N


def deal_rows(rows_RH: Tensor, row_K: Tensor, encoder_K: Tensor, schedule: RankSchedule, ranks: Ranks) -> Tensor:
    """Rows of this rank's tokens, in order of the prompt; what another rank encoded comes from there.

    Args:
        rows_RH: features or embeddings, of which other ranks' rows may be NaN.
        row_K: the row of each kept token, -1 where it has none.
        encoder_K: of :func:`encoder_of`, at the kept tokens.
    """
    world, me, encoder_K = ranks.world, ranks.rank, encoder_K.to(row_K.device)
    owner_K = torch.full_like(encoder_K, -1)
    for rank in range(world):
        owner_K[schedule.own_of(rank)] = rank
    moves_K = (row_K >= 0) & (encoder_K >= 0) & (owner_K >= 0) & (encoder_K != owner_K)
    pairs = encoder_K[moves_K] * world + owner_K[moves_K]
    counts = torch.bincount(pairs, minlength=world * world).view(world, world).tolist()
    leaving = (moves_K & (encoder_K == me)).nonzero()[:, 0]
    leaving = leaving[torch.argsort(owner_K[leaving], stable=True)]
    arriving = (moves_K & (owner_K == me)).nonzero()[:, 0]
    arriving = arriving[torch.argsort(encoder_K[arriving], stable=True)]
    received = ranks.exchange(rows_RH[row_K[leaving]], counts, "kept features")
    positions_L = schedule.positions(rows_RH.device)
    positions_L = positions_L[row_K[positions_L] >= 0]
    dealt = rows_RH[row_K[positions_L]]
    dealt[torch.searchsorted(positions_L, arriving)] = received
    return dealt
