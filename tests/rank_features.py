"""CAS on features that are spread over ranks; functions here run in a crew's processes.

Legend: N prompt tokens, H hidden size, Q question tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segmo.runtime.distributed.features import (
    Spread,
    deal_rows,
    encoder_of,
    is_spread,
    scan_spread,
    scene_novelty_spread,
    spread_fit,
)
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.schedule import RankSchedule
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.schedule import RowSchedule

HIDDEN = 6


@dataclass(frozen=True)
class Video:
    """A prompt's video: cells of each frame and text tokens in front of it, and who has which part afterwards.

    Attributes:
        frames: (text tokens, cells) of each frame.
        cuts: edges of the runs of tokens that ranks have afterwards. owners: rank of each run.
        seed: of the features. nan: whether ranks lack the features of other ranks' frames.
    """

    frames: tuple[tuple[int, int], ...]
    cuts: tuple[int, ...]
    owners: tuple[int, ...]
    seed: int
    nan: bool
    sinks: int = 2
    question: int = 3

    def layout(self) -> tuple[Tensor, Tensor]:
        """Frame and cell of each prompt token, (N,) each."""
        frame, cell = [SINK] * self.sinks, [-1] * self.sinks
        for index, (text, cells) in enumerate(self.frames):
            text = text if index else 0  # what stands before the first frame are sinks
            frame += [index] * (text + cells)
            cell += [*[-1] * text, *range(cells)]
        return torch.tensor(frame + [QUERY] * self.question), torch.tensor(cell + [-1] * self.question)

    def scene(self) -> Tensor:
        """Scene of each prompt token, (N,): one of two frames, one of three, and so on."""
        starts = torch.tensor([2, 5, 9])
        frame = self.layout()[0]
        return torch.where(frame < 0, frame, torch.bucketize(frame, starts, right=True))

    def embeddings(self) -> Tensor:
        """(N, H), the same in every process."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(len(self.layout()[0]), HIDDEN, generator=generator)

    def schedule(self, rank: int, world: int) -> RankSchedule:
        """One segment per run of tokens."""
        first, last = self.sinks, len(self.layout()[0]) - self.question
        inner = sorted({first + cut % max(last - first, 1) for cut in self.cuts} - {first})
        edges = [first, *inner, last]
        spans: list[list[tuple[int, int]]] = [[] for _ in range(world)]
        for index in range(len(edges) - 1):
            spans[self.owners[index] % world].append((edges[index], edges[index + 1]))
        row = RowSchedule(0, first, tuple(edges[1:]), last + self.question, ())
        return RankSchedule(row, tuple(map(tuple, spans)), rank, 0)


def numbers(rank: int, world: int, video: Video) -> dict[str, Tensor]:
    """What a rank knows of the video, and what of it it was dealt."""
    ranks = Ranks.of()
    (frame, cell), embeds = video.layout(), video.embeddings()
    encoder = encoder_of(frame, cell, ranks)
    if video.nan:
        embeds = embeds.masked_fill(((encoder >= 0) & (encoder != rank))[:, None], torch.nan)
    spread = Spread.of(frame, cell, ranks)
    missing = is_spread(embeds, spread)
    novelty, similarity = scan_spread(embeds, frame, cell, spread, missing)
    novelty = scene_novelty_spread(embeds, novelty, frame, cell, video.scene(), spread, missing)
    at, of_frame = spread.video_V.numpy(), spread.frame_V.numpy()
    fit = spread_fit(ranks, embeds[-video.question :], embeds, at, of_frame, spread.frames)
    schedule = video.schedule(rank, world)
    every = torch.arange(len(frame))
    flagged = every.masked_fill(frame != 0, -1)  # rows for some of the tokens only, as deepstack's
    return {
        "missing": torch.tensor(missing),
        "novelty": novelty,
        "similarity": similarity,
        "fit": fit,
        "positions": schedule.positions(),
        "dealt": deal_rows(embeds, every, encoder, schedule, ranks),
        "flagged": deal_rows(embeds, flagged, encoder, schedule, ranks),
    }
