"""Where the frames of a video lie in a prompt, and what role each prompt token has.

Legend: B batch, N prompt tokens, R rows of M-RoPE position ids, G runs of video tokens of a row, F frames of a row.

Roles are written into one integer per token: ``SINK`` for text before the first video token, ``QUERY`` for
text after the last one, ``TURN`` for text between two videos, and otherwise the index (of a frame, a scene or a
segment) that the token belongs to. Short text in front of a frame, such as Qwen3-VL's timestamps, belongs to it.

All of it is worked out by the host, on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.host import Array, give, read
from segmo.runtime.video_runs import between_videos, later_parts, places, run_ends, run_starts, videos_of_frames

SINK = -1
QUERY = -2
TURN = -3
NO_ROLE = -4  # of no token


def last_at_or_before(flag_BN: Array) -> Array:
    """Position of the last set flag at or before each position (0 where there is none), (B, N) int64."""
    return np.maximum.accumulate(np.where(flag_BN, np.arange(flag_BN.shape[1]), 0), axis=1)


def next_at_or_after(flag_BN: Array) -> Array:
    """Position of the next set flag at or after each position (N where there is none), (B, N) int64."""
    length = flag_BN.shape[1]
    marked_BN = np.where(flag_BN, np.arange(length), length)
    return np.minimum.accumulate(marked_BN[:, ::-1], axis=1)[:, ::-1]


def _frame_starts_mrope(video_BN: Array, run_start_BN: Array, positions_RBN: Array) -> Array:
    """A frame starts where height and width are back at the first values of its run of video tokens."""
    first_BN = last_at_or_before(run_start_BN)
    same_BN = np.ones_like(video_BN)
    for axis_BN in (positions_RBN[-2], positions_RBN[-1]):
        axis_BN = np.broadcast_to(axis_BN, video_BN.shape)
        same_BN = same_BN & (axis_BN == np.take_along_axis(axis_BN, first_BN, 1))
    return video_BN & (run_start_BN | same_BN)


def _hold_frames(video_BN: Array, positions_RBN: Array) -> bool:
    """Whether M-RoPE positions say where frames begin: transformers gives text positions where it gets no token ids."""
    time_V, *space = (np.broadcast_to(axis_BN, video_BN.shape)[video_BN] for axis_BN in positions_RBN[-3:])
    return any(not np.array_equal(time_V, axis_V) for axis_V in space)


def _frame_starts_counted(video_BN: Array, run_start_BN: Array, cells: int, trailing: int) -> Array:
    """A frame starts every ``cells`` tokens of a run; ``trailing`` tokens at its end join the last frame."""
    run_end_BN = run_ends(video_BN)
    positions = np.arange(video_BN.shape[1])
    offset_BN = positions - last_at_or_before(run_start_BN)
    length_BN = offset_BN + next_at_or_after(run_end_BN) - positions + 1
    framed_BN = length_BN - trailing
    wrong_BN = video_BN & ((framed_BN % cells != 0) | (framed_BN <= 0))
    if wrong_BN.any():
        length = int(length_BN[wrong_BN][0])
        raise PromptError(
            f"a video in the prompt has {length} tokens, which is not a whole number of frames of {cells} "
            f"tokens plus {trailing}; put text between videos and leave the processor's placeholders be"
        )
    start_BN: Array = video_BN & (offset_BN % cells == 0) & (offset_BN < framed_BN)
    return start_BN


def _frame_starts_shared(video_BN: Array, run_start_BN: Array, frames: Sequence[int] | None) -> Array:
    """A run of video tokens is a frame, or a video that its frames share evenly; the last one takes the rest."""
    heads, ends = places(run_start_BN), places(run_ends(video_BN)) + 1
    if frames is not None and len(heads) != len(frames):
        frames = _frames_of_runs(ends - heads, sum(frames))
    if frames is None:
        return run_start_BN
    start_M = np.zeros(video_BN.size, dtype=bool)
    for head, end, count in zip(heads.tolist(), ends.tolist(), frames, strict=True):
        cells = (end - head) // count if count > 0 else 0
        if not cells:
            return run_start_BN  # what is known of the call is of another video
        start_M[np.arange(count) * cells + head] = True
    return start_M.reshape(video_BN.shape)


def _frames_of_runs(length_G: Array, frames: int) -> list[int] | None:
    """How many of all frames lie in each run, where these are not the videos: frames of a size, or equal runs.

    As for frames that were encoded one by one, or that are runs themselves.
    """
    tokens = int(length_G.sum())
    if frames and tokens % frames == 0 and not (length_G % (tokens // frames)).any():
        shared: list[int] = (length_G // (tokens // frames)).tolist()
        return shared
    if len(length_G) and frames % len(length_G) == 0 and (length_G == length_G[0]).all():
        return [frames // len(length_G)] * len(length_G)
    return None


def _frame_starts_by_cell(video_BN: Array, run_start_BN: Array, cell_V: Array) -> Array:
    """A frame starts with a run, and where a run's cells do not go on."""
    back_BN = np.zeros_like(video_BN)
    back_BN[video_BN] = np.concatenate([np.ones(min(len(cell_V), 1), dtype=bool), cell_V[1:] <= cell_V[:-1]])
    return run_start_BN | back_BN


def roles(video_BN: Array, start_BN: Array, between_BN: Array) -> tuple[Array, Array]:
    """Frame and cell of every token, as :func:`video_layout` returns them.

    Args:
        video_BN: True at video tokens. start_BN: at the first token of each frame.
        between_BN: at text that stands between two videos.
    """
    length = video_BN.shape[1]
    positions = np.arange(length)
    upcoming_BN = next_at_or_after(video_BN)
    counted_BN = start_BN.cumsum(axis=1) - 1
    frame_BN = np.take_along_axis(counted_BN, upcoming_BN.clip(max=max(length - 1, 0)), 1)
    frame_BN[between_BN] = TURN
    frame_BN[positions < upcoming_BN[:, :1]] = SINK
    frame_BN[upcoming_BN == length] = QUERY
    seen_BN = video_BN.cumsum(axis=1)
    return frame_BN, np.where(video_BN, seen_BN - np.take_along_axis(seen_BN, last_at_or_before(start_BN), 1), -1)


def video_layout(
    video_BN: Tensor,
    positions_RBN: Tensor | None,
    cells_per_frame: int,
    trailing: int,
    marks_BN: Tensor | None = None,
    frames: Sequence[int] | None = None,
    cell_V: Tensor | None = None,
    ids_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Frame and cell of every prompt token.

    Without tokens per frame, and M-RoPE positions that are not those of text, every run of video tokens is a frame,
    unless there are as many runs as videos: then each run is shared out among the frames of its video.

    Args:
        video_BN: True at video tokens, (B, N) bool.
        positions_RBN: M-RoPE position ids, (3 or 4, B or 1, N) int; None for families with 1-D positions.
        cells_per_frame: tokens of a frame; read only without ``positions_RBN``.
        trailing: video tokens after a video's last frame; read only without ``positions_RBN``.
        marks_BN: True where a turn of the chat begins or ends, as far as that is known.
        frames: frames of each video of the batch, in order of the prompt, if they are known before the graph.
        cell_V: cell of each video token of the batch, in order, where a processor left cells out.
        ids_BN: token ids, which tell the parts of a frame from frames.

    Returns:
        ``frame`` (B, N) int64: frame index, ``SINK``, ``TURN`` or ``QUERY``; frames are counted through the whole row.
        ``cell`` (B, N) int64: index of a video token within its frame, -1 for text.
        Both on the device of ``video_BN``.

    Raises:
        PromptError: the rows hold different numbers of video tokens, or a video is not made of whole frames.
    """
    video, positions, marks, cells, ids = read(video_BN, positions_RBN, marks_BN, cell_V, ids_BN)
    counts_B = video.sum(axis=1)
    if (counts_B != counts_B[0]).any():
        raise PromptError(
            f"the rows of the batch hold different numbers of video tokens ({counts_B.tolist()}); SegMo "
            "keeps the same number of tokens in every row: run such prompts one at a time"
        )
    if cells is not None and cells.size != int(video.sum()):
        cells = None  # what is known of the call is of another video
    run_start_BN = run_starts(video)
    later_BN = np.zeros_like(video) if ids is None else np.stack(list(map(later_parts, video, ids)))
    if positions is not None and _hold_frames(video, positions):
        start_BN = _frame_starts_mrope(video, run_start_BN, positions)
    elif cells_per_frame:
        start_BN = _frame_starts_counted(video, run_start_BN, cells_per_frame, trailing)
    elif cells is not None:
        start_BN = _frame_starts_by_cell(video, run_start_BN, cells)
    elif later_BN.any():
        start_BN = run_start_BN
    else:
        start_BN = _frame_starts_shared(video, run_start_BN, frames)
    start_BN = start_BN & ~later_BN
    tagged, videos = positions is not None or not cells_per_frame, videos_of_frames(start_BN, frames)
    between = [
        between_videos(
            video[row],
            start_BN[row],
            later_BN[row],
            None if marks is None else marks[row],
            tagged,
            None if videos is None else videos[row],
        )
        for row in range(video.shape[0])
    ]
    frame_BN, cell_BN = roles(video, start_BN, np.stack(between))
    if cells is not None:
        cell_BN[video] = cells
    return give(frame_BN, video_BN.device), give(cell_BN, video_BN.device)


def heads_of(frame_N: Array, cell_N: Array) -> Array:
    """:func:`frame_heads` of arrays."""
    video_V = places(cell_N >= 0)
    frame_V = frame_N[video_V]
    head_F: Array = video_V[np.diff(frame_V, prepend=SINK) != 0]
    return head_F


def begins_video(frame_N: Array, cell_N: Array) -> Array:
    """:func:`video_starts` of arrays."""
    positions = np.arange(frame_N.shape[0])
    head_F = heads_of(frame_N, cell_N)
    text_N = np.maximum.accumulate(np.where(frame_N < 0, positions, -1))
    video_N = np.maximum.accumulate(np.where(cell_N >= 0, positions, -1))
    before_F = np.where(head_F > 0, video_N[head_F - 1], -1)
    return (before_F < 0) | (text_N[head_F] > before_F)


def frame_heads(frame_N: Tensor, cell_N: Tensor) -> Tensor:
    """Place of the first video token of each frame of a row, (F,) int64.

    Args:
        frame_N, cell_N: one row of :func:`video_layout`.
    """
    return give(heads_of(*read(frame_N, cell_N)), frame_N.device)


def video_starts(frame_N: Tensor, cell_N: Tensor) -> Tensor:
    """Whether each frame of a row is the first one of its video, (F,) bool: text of none or no video is in front of it.

    Args:
        frame_N, cell_N: one row of :func:`video_layout`.
    """
    return give(begins_video(*read(frame_N, cell_N)), frame_N.device)


def tag_tokens(frame_N: Array, cell_N: Array) -> Array:
    """Whether a token is text that belongs to a frame, (N,) bool.

    What stands in front of a video's first frame is not told from other text by its place. It is taken to be as long as
    what stands in front of the second one.
    """
    tag_N = (frame_N >= 0) & (cell_N < 0)
    head_F, first_F = heads_of(frame_N, cell_N), begins_video(frame_N, cell_N)
    place_M = places(tag_N)
    frame_M = frame_N[place_M]
    length_F = np.bincount(frame_M[place_M < head_F[frame_M]], minlength=head_F.shape[0])
    for lead in places(first_F[:-1] & ~first_F[1:]).tolist():
        tag_N[max(head_F[lead] - length_F[lead + 1], 0) : head_F[lead]] = True
    return tag_N
