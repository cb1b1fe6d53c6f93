"""Runs of video tokens in a prompt's row: which are parts of one frame, and which are frames of one video.

Legend: N prompt tokens, R runs of video tokens of a row, G runs that begin a frame, F frames of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

TAG = 24  # text between two frames of one video is at most so long ...
LONG_TAG = 48  # ... where a row has several such texts (Nemotron names both frames of a pair, with their times) ...
TAG_SPREAD, TAG_MORE = 1.5, 3  # ... and at most so many times, plus so much, as long as the shortest of its row
LONGER = 1  # tokens that a later time may have more than an earlier one: 10.0 and 9.5


def run_starts(video_BN: Tensor) -> Tensor:
    """Whether a token is the first one of its run of video tokens."""
    return video_BN & ~torch.nn.functional.pad(video_BN[:, :-1], (1, 0))


def run_ends(video_BN: Tensor) -> Tensor:
    """Whether a token is the last one of its run of video tokens."""
    return video_BN & ~torch.nn.functional.pad(video_BN[:, 1:], (0, 1))


def later_parts(video_N: Tensor, ids_N: Tensor) -> Tensor:
    """Whether a token begins a run that goes on with the frame in front of it, (N,) bool.

    A frame that is shown whole and then in slices (MiniCPM-V) is told by its brackets: slices stand in others than the
    pictures they are cut from. So there are two pairs of brackets, and frames in the first pair come again behind
    parts in the second.
    """
    head_R, last_R = run_starts(video_N[None])[0].nonzero()[:, 0], run_ends(video_N[None])[0].nonzero()[:, 0]
    none_N = torch.zeros_like(video_N)
    if head_R.shape[0] < 3 or head_R[0] == 0 or last_R[-1] + 1 == video_N.shape[0]:
        return none_N
    around_R2 = torch.stack([ids_N[head_R - 1], ids_N[last_R + 1]], dim=1)
    pairs, kind_R = torch.unique(around_R2, dim=0, return_inverse=True)
    later_R = kind_R != kind_R[0]
    again = bool((later_R[:-1] & ~later_R[1:]).any())
    if pairs.shape[0] != 2 or bool((pairs[0] == pairs[1]).any()) or not again:
        return none_N
    return none_N.index_fill(0, head_R[later_R], True)


def videos_of_frames(start_BN: Tensor, frames: Sequence[int] | None) -> list[Tensor] | None:
    """For each row the video that each of its frames belongs to, (F,); None where ``frames`` are not of this batch.

    Args:
        start_BN: True at the first token of each frame.
        frames: frames of each video of the batch, in order of the prompt, as far as they are known.
    """
    rows = start_BN.sum(dim=1).tolist()
    if frames is None or sum(frames) != sum(rows):
        return None
    video_M = torch.arange(len(frames)).repeat_interleave(torch.tensor(list(frames))).to(start_BN.device)
    parts = list(torch.split(video_M, rows))
    crosses = any(len(a) and len(b) and bool(a[-1] == b[0]) for a, b in pairwise(parts))
    return None if crosses else parts


def between_videos(
    video_N: Tensor,
    start_N: Tensor,
    later_N: Tensor,
    marks_N: Tensor | None,
    tagged: bool,
    video_F: Tensor | None,
) -> Tensor:
    """Whether a token stands between two videos, and not between two frames of one, (N,) bool.

    Two runs of video tokens are frames of one video if that is known. Otherwise they are if each is one frame, both are
    of one size, and between them is little text, about as much as between others, and no mark of a chat's turn: so it
    is where nothing is known, and where a video comes in chunks that are counted as videos.

    Args:
        video_N: True at video tokens. start_N: at the first token of each frame.
        later_N: from :func:`later_parts`.
        marks_N: True where a turn of the chat begins or ends, as far as that is known.
        tagged: frames of one video may have text between them.
        video_F: from :func:`videos_of_frames`.
    """
    begins_N = run_starts(video_N[None])[0]
    lead_G = (~later_N[begins_N]).nonzero()[:, 0]
    if lead_G.shape[0] < 2:
        return torch.zeros_like(video_N)
    head_G = begins_N.nonzero()[:, 0][lead_G]
    end_R = run_ends(video_N[None])[0].nonzero()[:, 0] + 1
    end_G = end_R[torch.nn.functional.pad(lead_G[1:], (0, 1), value=end_R.shape[0]) - 1]
    seen_N = torch.nn.functional.pad(video_N.long().cumsum(0), (1, 0))
    size_G, gap_G = seen_N[end_G] - seen_N[head_G], head_G[1:] - end_G[:-1]
    frames_G = torch.bucketize(start_N.nonzero()[:, 0], head_G, right=True).sub_(1).bincount(minlength=len(head_G))
    alike_G = (frames_G[1:] == 1) & (frames_G[:-1] == 1) & (size_G[1:] == size_G[:-1]) & tagged
    most = TAG if gap_G.shape[0] == 1 or video_F is not None else LONG_TAG
    shortest = gap_G.masked_fill(~alike_G, most).min()
    tag_G = alike_G & (gap_G <= (TAG_SPREAD * shortest + TAG_MORE).clamp(max=most))
    if marks_N is not None:
        before = torch.nn.functional.pad(marks_N.long().cumsum(0), (1, 0))
        tag_G &= before[head_G[1:]] == before[end_G[:-1]]
    if video_F is not None:
        next_G = frames_G.cumsum(0)[:-1]
        same_G = video_F[next_G] == video_F[next_G - 1]
        if bool(same_G.any()):
            tag_G &= gap_G <= gap_G[same_G].max() + LONGER
        tag_G |= same_G
    edge_N = torch.zeros(video_N.shape[0] + 1, dtype=torch.long, device=video_N.device)
    edge_N[end_G[:-1][~tag_G]] += 1
    edge_N[head_G[1:][~tag_G]] -= 1
    return edge_N.cumsum(0)[:-1] > 0
