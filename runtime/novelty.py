"""What a video token tells that others of its scene do not: novelty inside scenes (CAS, step 3).

What is kept should let the rest be told. A token of a later frame is told by the same cell of the frame before it or of
its scene's first frame, whichever is nearer, so what comes back after something passed in front of it is not new again.
A token of a scene's first frame is told by the same cell of the first frames of the two scenes before it, for a scene
that something interrupts goes on, and by other tokens of its own frame: they are taken farthest first, beginning with
the one least like the whole frame, and each is as new as it was far from those taken before. So a frame's tokens count
by what stands out, wherever it stands, and not by their order.

Source of the order: farthest-point traversal (Gonzalez, "Clustering to minimize the maximum intercluster distance",
1985), which is within a factor of two of the best k-centre cover for every number of tokens taken.

Legend: B batch, N prompt tokens, T video tokens of a row, S scenes, C cells of a frame, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from segmo.runtime.features import CHUNK
from segmo.runtime.layout import video_starts
from segmo.runtime.scenes import head_frames

FARTHEST = 2.0  # the largest 1 - cosine
BACK = 2  # scenes before, whose first frames are looked at: one that goes on, and one that came between
PICKS = 64  # tokens of a frame that are taken one after the other; what is left counts by its distance to these
PAIRS = 2**22  # distances between tokens of first frames that are held at a time

# (N, H) embeddings, (T,) positions, (T,) index of another of these tokens or -1, (T,) frames ->
# (T,) distance 1 - cosine to that token, 1 where there is none
Compare = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def distance_to(embeds_NH: Tensor, at_T: Tensor, other_T: Tensor, frame_T: Tensor) -> Tensor:
    """1 - cosine of each token to another one, (T,) fp32; 1 where ``other_T`` is -1.

    Args:
        at_T: positions of the tokens in ``embeds_NH``.
        other_T: index into ``at_T``, or -1.
        frame_T: frame of each token, which this implementation does not need.
    """
    distance_T = torch.ones(at_T.shape[0], device=embeds_NH.device)
    for chunk in torch.split((other_T >= 0).nonzero()[:, 0], CHUNK):
        now, other = embeds_NH[at_T[chunk]].float(), embeds_NH[at_T[other_T[chunk]]].float()
        norm = torch.linalg.vecdot(now, now) * torch.linalg.vecdot(other, other)
        distance_T[chunk] -= torch.linalg.vecdot(now, other) / norm.sqrt_().clamp_(min=1e-12)
    return distance_T


def farthest_first(distance_SCC: Tensor, known_SC: Tensor, start_SC: Tensor, real_SC: Tensor) -> Tensor:
    """How far each token was from those taken before it when its turn came, (S, C).

    Args:
        distance_SCC: between tokens, 1 - cosine.
        known_SC: of each token to what was taken elsewhere before.
        start_SC: the token for which this and ``known_SC`` are largest together is taken first; ties by order, here and
            later.
        real_SC: False where a frame has no such cell.
    """
    scenes, cells = start_SC.shape
    nearest_SC, radius_SC, open_SC = known_SC, torch.zeros_like(known_SC), real_SC
    wish_SC, every_S = known_SC + start_SC, torch.arange(scenes, device=start_SC.device)
    for _ in range(min(cells, PICKS)):
        taken_S = wish_SC.masked_fill(~open_SC, -torch.inf).argmax(dim=1)
        taken_SC = torch.zeros_like(open_SC).scatter_(1, taken_S[:, None], True) & open_SC
        radius_SC, open_SC = torch.where(taken_SC, nearest_SC, radius_SC), open_SC & ~taken_SC
        nearest_SC = wish_SC = torch.minimum(nearest_SC, distance_SCC[every_S, taken_S])
    return torch.where(open_SC, nearest_SC, radius_SC)


def _first_frames(embeds_NH: Tensor, at_SC: Tensor, known_SC: Tensor) -> Tensor:
    """Novelty of the tokens of some scenes' first frames, (S, C).

    Args:
        at_SC: their positions, -1 for none.
        known_SC: distance of each to the scenes before, ``FARTHEST`` where there is none.
    """
    real_SC = at_SC >= 0
    x_SCH = embeds_NH[at_SC.clamp(min=0)].float().masked_fill_(~real_SC[..., None], 0)
    whole_SH = torch.nn.functional.normalize(x_SCH.sum(dim=1), dim=-1)
    unit_SCH = torch.nn.functional.normalize(x_SCH, dim=-1)
    unlike_SC = 1 - (unit_SCH @ whole_SH[..., None])[..., 0]
    distance_SCC = 1 - unit_SCH @ unit_SCH.transpose(1, 2)
    return farthest_first(distance_SCC, known_SC, unlike_SC, real_SC)


def novel_tokens(
    embeds_NH: Tensor,
    at_T: Tensor,
    novelty_T: Tensor,
    frame_T: Tensor,
    cell_T: Tensor,
    scene_T: Tensor,
    first_F: Tensor,
    compare: Compare = distance_to,
) -> Tensor:
    """Novelty inside scenes of the video tokens of one prompt, or of some of its frames, (T,) fp32.

    Args:
        embeds_NH: holds the tokens' features.
        at_T: where, in order. novelty_T: distance to the same cell of the frame before.
        frame_T, cell_T, scene_T: of each token; a scene's first frame is the first one that is here.
        first_F: whether a frame of the whole row is the first one of its video, (F,) bool.
        compare: :func:`distance_to` or its generated twin.
    """
    first_T = frame_T == head_frames(frame_T, scene_T)[scene_T]
    token_SC = torch.full((int(scene_T[-1]) + 1, int(cell_T.max()) + 1), -1, device=at_T.device)
    token_SC[scene_T[first_T], cell_T[first_T]] = first_T.nonzero()[:, 0]
    told_T = compare(embeds_NH, at_T, token_SC[scene_T, cell_T].masked_fill(first_T, -1), frame_T)
    out_T = torch.minimum(novelty_T, told_T)
    known_T = torch.full_like(out_T, FARTHEST)
    video_F = first_F.cumsum(0)
    for back in range(1, BACK + 1):
        before_T = token_SC[(scene_T - back).clamp(min=0), cell_T].masked_fill(~first_T | (scene_T < back), -1)
        before_T = before_T.masked_fill(video_F[frame_T[before_T]] != video_F[frame_T], -1)
        known_T = torch.minimum(
            known_T, compare(embeds_NH, at_T, before_T, frame_T).masked_fill(before_T < 0, FARTHEST)
        )
    for part_SC in _alike(token_SC):
        real_SC = part_SC >= 0
        at_SC = torch.where(real_SC, at_T[part_SC], -1)
        found_SC = _first_frames(embeds_NH, at_SC, known_T[part_SC])
        out_T[part_SC[real_SC]] = found_SC[real_SC]
    return out_T


def _alike(token_SC: Tensor) -> Iterator[Tensor]:
    """The rows by groups with about as many tokens, no cell wider than their fullest row.

    Of scenes that went long ago a token or two are left; a video that goes on for ever has no end of them.
    """
    gone_SC = (token_SC < 0).byte()
    packed_SC = token_SC.gather(1, torch.argsort(gone_SC, dim=1, stable=True))
    order_S = torch.argsort(gone_SC.sum(1), stable=True)
    count = (token_SC.shape[1] - gone_SC.sum(1))[order_S].tolist()
    start = 0
    while start < len(count):
        width = max(count[start], 1)
        end = min(start + max(1, PAIRS // width**2), len(count))
        while 2 * count[end - 1] < width and end > start + 1:
            end -= 1
        yield packed_SC[order_S[start:end], :width]
        start = end


def scene_novelty(
    embeds_BNH: Tensor,
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    encoded_BN: Tensor | None = None,
    compare: Compare = distance_to,
) -> Tensor:
    """Novelty inside scenes of every video token, (B, N) fp32 from 0 to 2; 0 for text and for what was not encoded.

    Args:
        embeds_BNH: token embeddings after the merge.
        novelty_BN: from :func:`segmo.runtime.features.scan_video`.
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        scene_BN: from :func:`segmo.runtime.scenes.find_scenes`.
        encoded_BN: False at video tokens whose frame was never encoded.
        compare: :func:`distance_to` or its generated twin.
    """
    out_BN = torch.zeros_like(novelty_BN)
    for row in range(frame_BN.shape[0]):
        there_N = cell_BN[row] >= 0 if encoded_BN is None else (cell_BN[row] >= 0) & encoded_BN[row]
        at_T = there_N.nonzero()[:, 0]
        if at_T.numel():
            novelty_T, frame_T, cell_T, scene_T = (x[row, at_T] for x in (novelty_BN, frame_BN, cell_BN, scene_BN))
            first_F = video_starts(frame_BN[row], cell_BN[row])
            out_BN[row, at_T] = novel_tokens(
                embeds_BNH[row], at_T, novelty_T, frame_T, cell_T, scene_T, first_F, compare
            )
    return out_BN
