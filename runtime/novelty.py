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

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.features import CHUNK
from segmo.runtime.host import Array, give, here, send
from segmo.runtime.scenes import MAX_SCENES, head_frames
from segmo.runtime.video_tokens import VideoTokens, place

FARTHEST = 2.0  # the largest 1 - cosine
BACK = 2  # scenes before, whose first frames are looked at: one that goes on, and one that came between
PICKS = 64  # tokens of a frame that are taken one after the other; what is left counts by its distance to these
PAIRS = 2**22  # distances between tokens of first frames that are held at a time

# (N, H) embeddings, (T,) positions, (T,) index of another of these tokens or -1, (T,) frames ->
# (T,) distance 1 - cosine to that token, 1 where there is none. What is an array the host knows.
Compare = Callable[[Tensor, Array, Tensor, Array], Tensor]


def distance_to(embeds_NH: Tensor, at_T: Array, other_T: Tensor, frame_T: Array) -> Tensor:
    """1 - cosine of each token to another one, (T,) fp32; 1 where ``other_T`` is -1.

    Args:
        at_T: positions of the tokens in ``embeds_NH``.
        other_T: index into ``at_T``, or -1.
        frame_T: frame of each token, which this implementation does not need.
    """
    places_T, there_T = give(at_T, embeds_NH.device), other_T >= 0
    cosine_T = torch.zeros(places_T.shape[0], device=embeds_NH.device)
    for chunk in torch.split(_set(there_T), CHUNK):
        now, other = (embeds_NH[places_T[at]].float() for at in (chunk, other_T[chunk].clamp(min=0)))
        norm = torch.linalg.vecdot(now, now) * torch.linalg.vecdot(other, other)
        cosine_T[chunk] = torch.linalg.vecdot(now, other) / norm.sqrt_().clamp_(min=1e-12)
    return 1 - cosine_T.masked_fill(~there_T, 0)


def _set(flag_T: Tensor) -> Tensor:
    """Where flags are set, ascending, as far as nothing has to be waited for: on a device, everywhere."""
    if here(flag_T):
        return torch.from_numpy(np.flatnonzero(flag_T.numpy()))
    return torch.arange(flag_T.shape[0], device=flag_T.device)


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
    at_T: Array,
    novelty_T: Tensor,
    frame_T: Array,
    cell_T: Array,
    scene_T: Tensor,
    first_F: Array,
    compare: Compare = distance_to,
    most: int | None = None,
) -> Tensor:
    """Novelty inside scenes of the video tokens of one prompt, or of some of its frames, (T,) fp32.

    Args:
        embeds_NH: holds the tokens' features.
        at_T: where, in order. novelty_T: distance to the same cell of the frame before.
        frame_T, cell_T, scene_T: of each token; a scene's first frame is the first one that is here.
        first_F: whether a frame of the whole row is the first one of its video, (F,) bool.
        compare: :func:`distance_to` or its generated twin.
        most: no token has this scene or a higher one; where the host knows the scenes it looks itself.
    """
    device = embeds_NH.device
    scenes = int(scene_T.numpy().max()) + 1 if here(scene_T) else most or len(first_F)
    scene_T = send(scene_T, device)
    number_T, cells = torch.arange(len(at_T), device=device), int(cell_T.max()) + 1
    in_cell_T, in_frame_T = give(cell_T, device), give(frame_T, device)
    first_T = in_frame_T == head_frames(in_frame_T, scene_T, scenes)[scene_T]
    token_SC = torch.full((scenes + 1, cells), -1, device=device)  # the last row is for tokens of later frames
    token_SC[scene_T.masked_fill(~first_T, scenes), in_cell_T] = number_T
    token_SC = token_SC[:-1]
    told_T = compare(embeds_NH, at_T, token_SC[scene_T, in_cell_T].masked_fill(first_T, -1), frame_T)
    out_T = torch.minimum(novelty_T, told_T)
    known_T = torch.full_like(out_T, FARTHEST)
    video_T = give(first_F.cumsum()[frame_T], device)
    for back in range(1, BACK + 1):
        before_T = token_SC[(scene_T - back).clamp(min=0), in_cell_T].masked_fill(~first_T | (scene_T < back), -1)
        before_T = before_T.masked_fill(video_T[before_T] != video_T, -1)
        known_T = torch.minimum(
            known_T, compare(embeds_NH, at_T, before_T, frame_T).masked_fill(before_T < 0, FARTHEST)
        )
    out_T = torch.nn.functional.pad(out_T, (0, 1))  # the last place is for cells that a frame does not have
    places_T = give(at_T, device)
    for part_SC in _alike(token_SC) if here(token_SC) else torch.split(token_SC, max(1, PAIRS // cells**2)):
        real_SC = part_SC >= 0
        at_SC = torch.where(real_SC, places_T[part_SC], -1)
        found_SC = _first_frames(embeds_NH, at_SC, known_T[part_SC])
        out_T[part_SC.masked_fill(~real_SC, len(at_T)).flatten()] = found_SC.flatten()
    return torch.where(novelty_T.isnan(), novelty_T, out_T[:-1])


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
        novelty_BN: from :func:`segmo.runtime.features.scan_video`; what is NaN stays so.
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        scene_BN: from :func:`segmo.runtime.scenes.find_scenes`.
        encoded_BN: False at video tokens whose frame was never encoded.
        compare: :func:`distance_to` or its generated twin.
    """
    video, device = VideoTokens.of(frame_BN, cell_BN, encoded_BN), embeds_BNH.device
    if not len(video.at_T):
        return torch.zeros_like(novelty_BN)
    in_row = np.bincount(video.row_F, minlength=frame_BN.shape[0]).clip(max=MAX_SCENES)
    before_T = (in_row.cumsum() - in_row)[video.at_T // frame_BN.shape[1]]  # scenes of other rows are other scenes
    at_T = give(video.at_T, device)
    found_T = novel_tokens(
        embeds_BNH.flatten(0, 1),
        video.at_T,
        novelty_BN.flatten()[at_T],
        video.frame_T,
        video.cell_T,
        scene_BN.flatten()[at_T] + give(before_T, device),
        video.first_F,
        compare,
        int(in_row.sum()),
    )
    return place(found_T, video.at_T, novelty_BN.numel(), 0).view(novelty_BN.shape)
