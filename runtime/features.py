"""One pass over the video features: how new each token is, and how alike neighbouring frames are.

Legend: B batch, N prompt tokens, T video tokens, F frames, C cells of a frame, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.host import Array, give, here, read
from segmo.runtime.video_runs import places
from segmo.runtime.video_tokens import Room, VideoTokens, are_neighbours, place, take

# Tokens that are widened to fp32 at a time: a chunk of 512 x 1024 fp32 values stays in a core's cache.
CHUNK = 512
PAIRED = CHUNK // 2  # tokens of whole frames that are put together where as many others lie beside them
DEVICE_VALUES = 2**24  # fp32 values that a device holds at a time: 64 MB, so that its queue gets few calls


def previous_cell(frame_T: Array, cell_T: Array) -> Array:
    """Index of the token in the same cell of the previous frame, -1 where there is none; (T,) int64."""
    frames, cells = int(frame_T[-1]) + 1, int(cell_T.max()) + 1
    token_FC = np.full((frames + 1, cells), -1)
    token_FC[frame_T + 1, cell_T] = np.arange(frame_T.shape[0])
    found: Array = token_FC[frame_T, cell_T]
    return found


def alone(frame_T: Array, first_F: Array) -> tuple[Array, Array]:
    """Successive frames of a row by themselves: their tokens' frames counted from 0, and which of them begin a video.

    The first one does, as nothing stands before it here.
    """
    first = first_F[frame_T[0] : frame_T[-1] + 1].copy()
    first[0] = True
    return frame_T - frame_T[0], first


def frame_parts(frame_T: Array) -> Iterator[tuple[int, int]]:
    """Start and end of each frame's tokens among some in order, of which there is at least one."""
    if frame_T[0] == frame_T[-1]:
        return iter([(0, len(frame_T))])
    edges = places(frame_T[1:] != frame_T[:-1]) + 1
    return pairwise([0, *edges.tolist(), len(frame_T)])


def blocks(frame_T: Array, joined: int = CHUNK) -> Iterator[slice]:
    """Neighbouring tokens to work on together: some whole frames, or a part of a large one.

    A frame is cut at the same tokens wherever it stands, so that its sums are the same.

    Args:
        frame_T: frame of each token, in order.
        joined: frames of together no more tokens are put into one block.
    """
    start, tokens, most = 0, len(frame_T), max(CHUNK, joined)
    for head, end in frame_parts(frame_T) if tokens else ():
        if end - start > joined and head > start:
            yield slice(start, head)
            start = head
        while end - start > most:
            yield slice(start, start + most)
            start += most
    if start < tokens:
        yield slice(start, tokens)


def add_frames(total_FH: Tensor, x_TH: Tensor, frame_T: Array) -> None:
    """Adds tokens to the sums of their frames."""
    if not here(x_TH):
        total_FH.index_add_(0, give(frame_T, x_TH.device), x_TH)
        return
    parts, first, last = list(frame_parts(frame_T)), int(frame_T[0]), int(frame_T[-1])
    alike = len({end - start for start, end in parts}) == 1 and last - first + 1 == len(parts)
    if alike and x_TH.stride(1) == 1:  # of others the order of a sum depends on how many there are
        total_FH[first : last + 1].add_(torch.unflatten(x_TH, 0, (len(parts), -1)).sum(1))
        return
    for start, end in parts:
        total_FH[frame_T[start]].add_(x_TH[start:end].sum(0))


def _scan(embeds_NH: Tensor, at_T: Array, frame_T: Array, before_T: Array) -> tuple[Tensor, Tensor, Tensor]:
    """Norm of each token (T,), its dot product with the one at ``before_T``, each frame's sum (F, H)."""
    sum_FH = torch.zeros(int(frame_T[-1]) + 1, embeds_NH.shape[1], device=embeds_NH.device, dtype=torch.float32)
    norms, dots = list[Tensor](), list[Tensor]()
    now_room, before_room = Room(embeds_NH), Room(embeds_NH)
    last, last_TH = at_T[:0], embeds_NH[:0]
    # Of small frames many are put together, and the frame in front of them is read again; others stand by themselves.
    small = np.bincount(frame_T).max() <= CHUNK // 4
    for block in blocks(frame_T, CHUNK if small else PAIRED):
        at, before = at_T[block], before_T[block]
        ahead = int(at[0] - before[0])
        if 0 < ahead < len(at) and are_neighbours(at) and are_neighbours(before):
            both_TH = now_room.widen(embeds_NH[int(before[0]) : int(at[-1]) + 1])
            now_TH, before_TH = both_TH[ahead:], both_TH[:-ahead]
        else:
            now_TH = now_room.widen(take(embeds_NH, at))
            # Where a block is one whole frame, the one before it was the last block.
            before_TH = last_TH if np.array_equal(before, last) else before_room.widen(take(embeds_NH, before))
        norms.append(torch.linalg.vector_norm(now_TH, dim=-1))
        dots.append(before_room.dot(now_TH, before_TH))
        add_frames(sum_FH, now_TH, frame_T[block])
        last, last_TH, now_room, before_room = at, now_TH, before_room, now_room
    return torch.cat(norms), torch.cat(dots), sum_FH


def check_finite(value_T: Array, frame_T: Array, cell_T: Array) -> None:
    """Refuses video features of which a number (T,) came out that is not finite.

    Raises:
        PromptError: it names the first token's frame and cell.
    """
    bad_T = ~np.isfinite(value_T)
    if bad_T.any():
        token = int(bad_T.argmax())
        raise PromptError(
            f"the video features hold NaN or infinity (first in frame {int(frame_T[token])}, cell "
            f"{int(cell_T[token])}); check the pixels and the dtype of the vision encoder"
        )


def finite_or_nan(novelty_T: Tensor, value_T: Tensor, frame_T: Array, cell_T: Array) -> Tensor:
    """Novelty of tokens of which a value is finite, as :func:`check_finite` asks.

    A device is not waited for here: what is not finite has novelty NaN there, which is refused where the host reads it.
    """
    if here(value_T):
        check_finite(value_T.numpy(), frame_T, cell_T)
        return novelty_T
    return novelty_T.masked_fill(~torch.isfinite(value_T), torch.nan)


def scan_tokens(
    embeds_NH: Tensor, at_T: Tensor, frame_T: Tensor, cell_T: Tensor, first_F: Tensor
) -> tuple[Tensor, Tensor]:
    """Novelty of the video tokens of successive frames, and similarity of each of these frames to the one before.

    Args:
        embeds_NH: holds the tokens' features.
        at_T: where, (T,). frame_T, cell_T: frame and cell of each, in order; the first frame may be any.
        first_F: whether a frame of the whole row is the first one of its video, (F,) bool.

    Returns:
        (T,) and one value for each frame from ``frame_T[0]`` on, both fp32; 1 in the first of these frames.

    Raises:
        PromptError: the features hold NaN or infinity.
    """
    at, frame, cell, first = read(at_T, frame_T, cell_T, first_F)
    novelty_T, similarity_F, norm_T, _ = _scan_frames(embeds_NH, at, frame, cell, first)
    return finite_or_nan(novelty_T, norm_T, frame, cell), similarity_F


def _scan_frames(
    embeds_NH: Tensor, at_T: Array, frame_T: Array, cell_T: Array, first_F: Array
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`scan_tokens` returns, the norm of each token, and the sum of each frame, (F, H)."""
    local_T, first = alone(frame_T, first_F)
    previous_T = previous_cell(local_T, cell_T)
    previous_T[first[local_T]] = -1
    before_T = previous_T.clip(min=0)
    norm_T, dot_T, sum_FH = _scan(embeds_NH, at_T, local_T, at_T[before_T])

    cosine_T = dot_T / (norm_T * norm_T[give(before_T, norm_T.device)]).clamp(min=1e-12)
    novelty_T = (1 - cosine_T).masked_fill(give(previous_T < 0, norm_T.device), 1)
    descriptor_FH = torch.nn.functional.normalize(sum_FH, dim=-1)
    similarity_F = torch.ones(len(first), device=embeds_NH.device, dtype=torch.float32)
    similarity_F[1:] = torch.linalg.vecdot(descriptor_FH[1:], descriptor_FH[:-1])
    similarity_F = similarity_F.masked_fill(give(first, norm_T.device), 1)
    return novelty_T, similarity_F, norm_T, sum_FH


def mean_of_rows(sum_FH: Tensor, video: VideoTokens, rows: int) -> Tensor:
    """Mean of the features of each row's video tokens, from the sums of their frames, (B, H); 0 where it has none."""
    frames_B = give(np.bincount(video.row_F, minlength=rows), sum_FH.device)
    tokens_B = give(np.bincount(video.row_F[video.frame_T], minlength=rows), sum_FH.device)
    return torch.segment_reduce(sum_FH, "sum", lengths=frames_B, unsafe=True) / tokens_B.clamp(min=1)[:, None]


def scan_video(embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Novelty and frame similarity of every video token (CAS, steps 1 and 3), and their mean feature.

    Args:
        embeds_BNH: token embeddings after the merge, (B, N, H).
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.

    Returns:
        ``novelty`` (B, N) fp32: 1 - cosine with the same cell of the previous frame; 1 where there is none,
        as in the first frame of each video; 0 for text.
        ``similarity`` (B, N) fp32: cosine between the descriptor (mean feature) of the token's frame and the
        previous frame's; 1 for the first frame of each video and for text.
        ``mean`` (B, H) fp32: of the features of each row's video tokens; 0 for a row without.

    Raises:
        PromptError: the features hold NaN or infinity (on a device novelty is NaN there).
    """
    video = VideoTokens.of(frame_BN, cell_BN)
    shape, device = frame_BN.shape, embeds_BNH.device
    if not len(video.at_T):
        mean_BH = torch.zeros(shape[0], embeds_BNH.shape[2], device=device, dtype=torch.float32)
        novelty_BN = torch.zeros(shape, device=device, dtype=torch.float32)
        return novelty_BN, torch.ones_like(novelty_BN), mean_BH
    novelty_T, similarity_F, norm_T, sum_FH = _scan_frames(
        embeds_BNH.flatten(0, 1), video.at_T, video.frame_T, video.cell_T, video.first_F
    )
    novelty_T = finite_or_nan(novelty_T, norm_T, video.number_T, video.cell_T)
    similarity_T = similarity_F[give(video.frame_T, device)]
    length = frame_BN.numel()
    return (
        place(novelty_T, video.at_T, length, 0).view(shape),
        place(similarity_T, video.at_T, length, 1).view(shape),
        mean_of_rows(sum_FH, video, shape[0]),
    )
