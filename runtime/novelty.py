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

from segmo.runtime.features import CHUNK, PAIRED, blocks
from segmo.runtime.host import Array, give, here, send
from segmo.runtime.scenes import MAX_SCENES, head_frames
from segmo.runtime.video_tokens import Room, VideoTokens, place, take

FARTHEST = 2.0  # the largest 1 - cosine
BACK = 2  # scenes before, whose first frames are looked at: one that goes on, and one that came between
PICKS = 64  # tokens of a frame that are taken one after the other; what is left counts by its distance to these
PAIRS = 2**22  # distances between tokens of first frames that are held at a time
STRIP = 64  # tokens of a first frame whose distances are computed at a time

# (N, H) embeddings, (T,) positions, (T,) index of another of these tokens or -1, (T,) frames ->
# (T,) distance 1 - cosine to that token, 1 where there is none. What is an array the host knows.
Compare = Callable[[Tensor, Array, Tensor, Array], Tensor]


def distance_to(embeds_NH: Tensor, at_T: Array, other_T: Tensor, frame_T: Array) -> Tensor:
    """1 - cosine of each token to another one, (T,) fp32; 1 where ``other_T`` is -1.

    Args:
        at_T: positions of the tokens in ``embeds_NH``.
        other_T: index into ``at_T``, or -1.
        frame_T: frame of each token. Frames that are compared with the same one follow each other, as a rule.
    """
    there_T, known = other_T >= 0, here(other_T)
    # What a device alone knows is not waited for: there, tokens without another one are compared with the first.
    set_K = np.flatnonzero(there_T.numpy()) if known else np.arange(len(at_T))
    beside_K = at_T[other_T.numpy()[set_K]] if known else give(at_T, other_T.device)[other_T.clamp(min=0)]
    now_room, other_room = Room(embeds_NH), Room(embeds_NH)
    cosines, last = [torch.empty(0, device=embeds_NH.device, dtype=torch.float32)], None
    for block in blocks(frame_T[set_K], PAIRED):
        now_TH, at = now_room.widen(take(embeds_NH, at_T[set_K[block]])), beside_K[block]
        if last is None or not known or not np.array_equal(last, at):
            other_TH = other_room.widen(take(embeds_NH, at))
            length_T, last = torch.linalg.vector_norm(other_TH, dim=-1), at
        norm_T = torch.linalg.vector_norm(now_TH, dim=-1).mul_(length_T).clamp_(min=1e-12)
        cosines.append(now_room.dot(now_TH, other_TH).div_(norm_T))
    return 1 - place(torch.cat(cosines), set_K, len(at_T), 0).masked_fill(~there_T, 0)


def farthest_first(distance_SCC: Tensor, known_SC: Tensor, start_SC: Tensor, real_SC: Tensor) -> Tensor:
    """How far each token was from those taken before it when its turn came, (S, C); 0 where there is no such cell.

    Args:
        distance_SCC: between tokens, 1 - cosine.
        known_SC: of each token to what was taken elsewhere before.
        start_SC: the token for which this and ``known_SC`` are largest together is taken first; ties by order, here and
            later.
        real_SC: False where a frame has no such cell.
    """
    scenes, cells = start_SC.shape
    every_S = torch.arange(scenes, device=start_SC.device)
    nearest_SC = known_SC.masked_fill(~real_SC, -torch.inf)  # and so is what was taken, which is not taken again
    radius_SC = torch.full_like(known_SC, -torch.inf)
    taken_S1 = (nearest_SC + start_SC).argmax(dim=1, keepdim=True)
    far_S1 = nearest_SC.gather(1, taken_S1)
    for _ in range(min(cells, PICKS)):
        radius_SC.scatter_reduce_(1, taken_S1, far_S1, "amax")
        nearest_SC = torch.minimum(nearest_SC, distance_SCC[every_S, taken_S1[:, 0]])
        far_S1, taken_S1 = nearest_SC.scatter_(1, taken_S1, -torch.inf).max(dim=1, keepdim=True)
    return torch.maximum(nearest_SC, radius_SC).masked_fill(~real_SC, 0)


def _distances(unit_SCH: Tensor, out_SCC: Tensor) -> None:
    """1 - cosine between the tokens of each frame, (S, C, C): strip by strip from the diagonal on, and mirrored."""
    cells = unit_SCH.shape[1]
    for start in range(0, cells, STRIP):
        strip, right = slice(start, start + STRIP), slice(start, cells)
        part = 1 - unit_SCH[:, strip] @ unit_SCH[:, right].transpose(1, 2)
        out_SCC[:, strip, right] = part
        out_SCC[:, right, strip] = part.transpose(1, 2)


def _first_frames(embeds_NH: Tensor, at_SC: Tensor, known_SC: Tensor, real_SC: Tensor) -> Tensor:
    """Novelty of the tokens of some scenes' first frames, (S, C).

    Args:
        at_SC: their positions.
        known_SC: distance of each to the scenes before, ``FARTHEST`` where there is none.
        real_SC: False where a frame has no such cell; the position is that of any other video token.
    """
    scenes, cells = at_SC.shape
    unlike_SC, distance_SCC = torch.empty_like(known_SC), known_SC.new_empty(scenes, cells, cells)
    step = max(1, CHUNK // cells) if here(embeds_NH) else scenes  # a device does all of them at once
    room = Room(embeds_NH)
    for start in range(0, scenes, step):
        part = slice(start, start + step)
        at_T = at_SC[part].flatten()
        x_TH = room.copy(take(embeds_NH, at_T.numpy() if here(at_T) else at_T))
        x_SCH = torch.unflatten(x_TH, 0, (-1, cells)).mul_(real_SC[part, :, None])
        whole_SH = torch.nn.functional.normalize(x_SCH.sum(dim=1), dim=-1)
        unit_SCH = x_SCH.div_(torch.linalg.vector_norm(x_SCH, dim=-1, keepdim=True).clamp_(min=1e-12))
        _distances(unit_SCH, distance_SCC[part])
        unlike_SC[part] = 1 - unit_SCH.mul_(whole_SH[:, None]).sum(dim=-1)
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
        found_SC = _first_frames(embeds_NH, places_T[part_SC.clamp(min=0)], known_T[part_SC], real_SC)
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
