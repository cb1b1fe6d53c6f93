"""Runs of video tokens in a prompt's row: which are parts of one frame, and which are frames of one video.

Legend: N prompt tokens, R runs of video tokens of a row, G runs that begin a frame, F frames of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from segmo.runtime.host import Array

TAG = 24  # text between two frames of one video is at most so long ...
LONG_TAG = 48  # ... where a row has several such texts (Nemotron names both frames of a pair, with their times) ...
TAG_SPREAD, TAG_MORE = 1.5, 3  # ... and at most so many times, plus so much, as long as the shortest of its row
LONGER = 1  # tokens that a later time may have more than an earlier one: 10.0 and 9.5


def places(flag: Array) -> Array:
    """Where flags are set, counted through all rows, ascending."""
    return np.flatnonzero(flag)


def run_starts(video_BN: Array) -> Array:
    """Whether a token is the first one of its run of video tokens."""
    return video_BN & ~_beside(video_BN, 0)


def run_ends(video_BN: Array) -> Array:
    """Whether a token is the last one of its run of video tokens."""
    return video_BN & ~_beside(video_BN, 1)


def _beside(flag_BN: Array, side: int) -> Array:
    """The flag of the token in front of each (0) or behind it (1); False outside."""
    edge_B1 = np.zeros((*flag_BN.shape[:-1], 1), dtype=bool)
    parts = [flag_BN[..., 1:], edge_B1] if side else [edge_B1, flag_BN[..., :-1]]
    return np.concatenate(parts, axis=-1)


def later_parts(video_N: Array, ids_N: Array) -> Array:
    """Whether a token begins a run that goes on with the frame in front of it, (N,) bool.

    A frame that is shown whole and then in slices (MiniCPM-V) is told by its brackets: slices stand in others than the
    pictures they are cut from. So there are two pairs of brackets, and frames in the first pair come again behind
    parts in the second.
    """
    head_R, last_R = places(run_starts(video_N)), places(run_ends(video_N))
    none_N = np.zeros_like(video_N)
    if head_R.shape[0] < 3 or head_R[0] == 0 or last_R[-1] + 1 == video_N.shape[0]:
        return none_N
    open_R, close_R = ids_N[head_R - 1], ids_N[last_R + 1]
    later_R = (open_R != open_R[0]) | (close_R != close_R[0])
    again = (later_R[:-1] & ~later_R[1:]).any()
    other = int(later_R.argmax())
    one_more = ((open_R == open_R[other]) & (close_R == close_R[other]))[later_R].all()
    if not again or not one_more or open_R[0] == open_R[other] or close_R[0] == close_R[other]:
        return none_N
    none_N[head_R[later_R]] = True
    return none_N


def videos_of_frames(start_BN: Array, frames: Sequence[int] | None) -> list[Array] | None:
    """For each row the video that each of its frames belongs to, (F,); None where ``frames`` are not of this batch.

    Args:
        start_BN: True at the first token of each frame.
        frames: frames of each video of the batch, in order of the prompt, as far as they are known.
    """
    rows = start_BN.sum(axis=1)
    if frames is None or sum(frames) != int(rows.sum()):
        return None
    video_M = np.arange(len(frames)).repeat(list(frames))
    parts = np.split(video_M, rows.cumsum()[:-1])
    crosses = any(len(a) and len(b) and a[-1] == b[0] for a, b in pairwise(parts))
    return None if crosses else parts


def between_videos(
    video_N: Array,
    start_N: Array,
    later_N: Array,
    marks_N: Array | None,
    tagged: bool,
    video_F: Array | None,
) -> Array:
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
    head_R, end_R = places(run_starts(video_N)), places(run_ends(video_N)) + 1
    lead_G = places(~later_N[head_R])
    if lead_G.shape[0] < 2:
        return np.zeros_like(video_N)
    head_G = head_R[lead_G]
    end_G = end_R[np.append(lead_G[1:], end_R.shape[0]) - 1]
    seen_N = np.append(0, video_N.cumsum())
    size_G, gap_G = seen_N[end_G] - seen_N[head_G], head_G[1:] - end_G[:-1]
    frames_G = np.bincount(np.searchsorted(head_G, places(start_N), side="right") - 1, minlength=len(head_G))
    alike_G = (frames_G[1:] == 1) & (frames_G[:-1] == 1) & (size_G[1:] == size_G[:-1]) & tagged
    most = TAG if gap_G.shape[0] == 1 or video_F is not None else LONG_TAG
    shortest = np.where(alike_G, gap_G, most).min()
    tag_G = alike_G & (gap_G <= min(TAG_SPREAD * shortest + TAG_MORE, most))
    if marks_N is not None:
        before = np.append(0, marks_N.cumsum())
        tag_G &= before[head_G[1:]] == before[end_G[:-1]]
    if video_F is not None:
        next_G = frames_G.cumsum()[:-1]
        same_G = video_F[next_G] == video_F[next_G - 1]
        if same_G.any():
            tag_G &= gap_G <= gap_G[same_G].max() + LONGER
        tag_G |= same_G
    edge_N = np.zeros(video_N.shape[0] + 1, dtype=np.int64)
    edge_N[end_G[:-1][~tag_G]] += 1
    edge_N[head_G[1:][~tag_G]] -= 1
    return edge_N.cumsum()[:-1] > 0
